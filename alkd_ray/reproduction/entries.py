"""From finished sweeps to the entries of a table or figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alkd_ray import artifacts, stages
from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import rankings_of
from alkd_ray.config import RunConfig
from alkd_ray.evaluation.metrics import metric_values
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.reproduction.cells import Entry, Role
from alkd_ray.reproduction.studies import Study
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps.config import Sweep
from alkd_ray.sweeps.records import TrialRecord, value_text
from alkd_ray.sweeps.shared import Shared
from alkd_ray.sweeps.standings import Standing
from alkd_ray.types import FloatArray

CUTOFFS = (5, 10)


@dataclass(frozen=True, slots=True)
class Finished:
    """A sweep that ended.

    Attributes:
        dataset: name of the dataset.
        sweep: the sweep.
        standings: its settings.
        records: trial -> what became of it.
        shared: what its trials shared.
        tested: trial -> role -> key of its ranks of the test sessions.
        seconds: wall time of this call.
    """

    dataset: str
    sweep: Sweep
    standings: Sequence[Standing]
    records: Mapping[str, TrialRecord]
    shared: Shared
    tested: Mapping[str, Mapping[str, str]]
    seconds: float


def entries_of(study: Study, finished: Finished, root: Path) -> list[Entry]:
    """All systems of one dataset: by setting, their students and teachers once, the baselines."""
    return list(_Collector(study, finished, root).entries())


def tested_trials(finished: Finished, standing: Standing) -> list[str]:
    """Of all seeds, in their order; [] unless each was tested."""
    names = [f"{standing.setting.id}-{seed}" for seed in finished.sweep.seeds]
    return names if all(name in finished.tested for name in names) else []


def link_to(finished: Finished, standing: Standing, role: str = "distilled") -> str:
    """To a setting's row in the sweep's report: of its test metrics, where it has such.

    There stand its student and teacher beside it, in rows of their own.
    """
    row = f"setting-{standing.setting.id}"
    if tested_trials(finished, standing):
        row = f"test-{standing.setting.id}{'' if role == 'distilled' else f'-{role}'}"
    return f"../../sweeps/{finished.sweep.sweep_id}/report/sweep.html#{row}"


class _Collector:
    """Reads what the trials of a sweep left below the run root."""

    def __init__(self, study: Study, finished: Finished, root: Path) -> None:
        self.study = study
        self.finished = finished
        self.root = root
        self.context = Context(finished.sweep.of({}), root, Silent())
        self.imported = stages.import_sessions(self.context)

    def entries(self) -> Iterator[Entry]:
        order = {text: number for number, text in enumerate(self._columns())}
        found = sorted(
            self.finished.standings,
            key=lambda one: (self._row_order(one), order[self._column(one)]),
        )
        yield from self._before(found)
        yield from map(self._distilled, found)
        yield from self._baselines()

    def _distilled(self, standing: Standing) -> Entry:
        setting = standing.setting
        trials = self._trials(standing)
        keys = [self.finished.tested[trial]["distilled"] for trial in trials]
        models = [self._model("distilled", trial) for trial in trials]
        return Entry(
            self.finished.dataset,
            self._row(standing),
            self._column(standing),
            "distilled",
            self._values(keys, models),
            "" if trials else standing.state.replace("whole", "not tested"),
            self._rankings(standing),
            setting.id,
            tuple(trials),
            link_to(self.finished, standing),
        )

    def _before(self, standings: Sequence[Standing]) -> Iterator[Entry]:
        """Students and teachers, of each row; of none where all rows share them."""
        for role in self.study.roles:
            groups: dict[tuple[str, ...], list[Standing]] = {}
            models: dict[tuple[str, ...], list[StageOutput]] = {}
            for one in self._of_main(standings):
                if found := self._pretrained(role, one):
                    keys = tuple(found)
                    groups.setdefault(keys, []).append(one)
                    models[keys] = list(found.values())
            for keys, group in groups.items():
                rows = dict.fromkeys(map(self._row, group))
                shared = len(groups) == 1 and len(rows) > 1
                values = self._values(keys, models[keys])
                for row in [""] if shared else rows:
                    kind: Role = "student" if role == "student" else "teacher"
                    yield Entry(
                        self.finished.dataset,
                        row,
                        role,
                        kind,
                        values,
                        setting=group[0].setting.id,
                        runs=tuple(self._trials(group[0])),
                        link=link_to(self.finished, group[0], role),
                    )

    def _pretrained(self, role: str, standing: Standing) -> dict[str, StageOutput]:
        """Key of its ranks of the test sessions -> model, by seed; {} unless all are there.

        What failed was not tested, but its models may well have been pretrained before.
        """
        if trials := self._trials(standing):
            return {self.finished.tested[trial][role]: self._model(role, trial) for trial in trials}
        context = Context(self._config(standing.setting.point), self.root, Silent())
        seeds = self.finished.sweep.seeds
        if not all(stages.is_pretrained(context, role, self.imported, seed) for seed in seeds):
            return {}
        models = [stages.pretrain(context, role, self.imported, seed) for seed in seeds]
        return {
            stages.evaluate(context, self.imported, model, role, seed).key: model
            for model, seed in zip(models, seeds, strict=True)
        }

    def _baselines(self) -> Iterator[Entry]:
        for name in self.context.config.evaluation.baselines:
            found = stages.evaluate_baseline(self.context, self.imported, name)
            yield Entry(
                self.finished.dataset, "", name, "baseline", self._values_of_ranks([found.key])
            )

    def _of_main(self, standings: Sequence[Standing]) -> list[Standing]:
        """A setting of each row: the main one, or a tested one with the same student."""
        found = []
        for row in dict.fromkeys(map(self._row, standings)):
            inside = [one for one in standings if self._row(one) == row]
            main = next((o for o in inside if self._column(o) == self.study.main), inside[0])
            student = self._config(main.setting.point).student
            alike = [
                one
                for one in (main, *inside)
                if self._trials(one) and self._config(one.setting.point).student == student
            ]
            found.append(alike[0] if alike else main)
        return found

    def _values(self, keys: Sequence[str], models: Sequence[StageOutput]) -> dict[str, FloatArray]:
        """Metric -> ``[R, S]``; of tables, that of the paper as well."""
        values = self._values_of_ranks(keys)
        if not values or not self.study.is_table:
            return values
        by_seed = [
            stages.reference_ndcg(self.context, self.imported, model, CUTOFFS) for model in models
        ]
        return values | {
            f"reference_ndcg@{k}": np.stack([values_of[k] for values_of in by_seed])
            for k in CUTOFFS
            if f"ndcg@{k}" in self.study.metrics
        }

    def _values_of_ranks(self, keys: Sequence[str]) -> dict[str, FloatArray]:
        if not keys:
            return {}
        storage = self.context.storage
        ranks = [
            read_ranks(
                artifacts.found(self.root, "evaluation", key, storage).folder / "ranks.parquet"
            )
            for key in keys
        ]
        return {
            metric: np.stack([metric_values(one, metric) for one in ranks])
            for metric in self.study.metrics
        }

    def _model(self, role: str, trial: str) -> StageOutput:
        record, storage = self.finished.records[trial], self.context.storage
        if role == "distilled":
            return artifacts.found(self.root, "distillation", record.distilled, storage)
        if role == "student":
            return artifacts.found(self.root, "pretrain", record.student, storage)
        by_seed = self.finished.shared.trials(record.setting, self._config(record.point))
        key = next(one.teacher for one in by_seed if one.seed == record.seed)
        return artifacts.found(self.root, "pretrain", key, storage)

    def _config(self, point: Mapping[str, object]) -> RunConfig:
        return self.finished.sweep.of(point)

    def _trials(self, standing: Standing) -> list[str]:
        return tested_trials(self.finished, standing)

    def _rankings(self, standing: Standing) -> float | None:
        """LLM rankings that a seed's training read."""
        config = self._config(standing.setting.point)
        trials = self.finished.shared.trials(standing.setting, config)
        if not trials[0].rankings:
            return None
        output = artifacts.found(self.root, "annotation", trials[0].rankings, self.context.storage)
        return float(np.mean([len(rankings_of(output, trial.seed)[0]) for trial in trials]))

    def _row(self, standing: Standing) -> str:
        return value_text(standing.setting.point[self.study.rows])

    def _row_order(self, standing: Standing) -> int:
        axis = self.finished.sweep.config.over[self.study.rows]
        return [value_text(value) for value in axis.listed or []].index(self._row(standing))

    def _column(self, standing: Standing) -> str:
        return (
            value_text(standing.setting.point[self.study.columns])
            if self.study.columns
            else ("distilled")
        )

    def _columns(self) -> list[str]:
        if not self.study.columns:
            return ["distilled"]
        axis = self.finished.sweep.config.over[self.study.columns]
        return [value_text(value) for value in axis.listed or []]
