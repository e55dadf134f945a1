"""A sweep in MLflow's terms: one run per setting below one run for the sweep."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from alkd_ray import artifacts, stages
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.evaluation.metrics import summary
from alkd_ray.evaluation.ranks import read_ranks
from alkd_ray.runtime._mlflow_records import SettingRun, SweepRun, TrackedSweep, mean_history
from alkd_ray.runtime._sweep_story import Story
from alkd_ray.runtime.run_log import flat
from alkd_ray.runtime.tracking import SweepTracker
from alkd_ray.serving.export import export
from alkd_ray.stages import Context, Silent
from alkd_ray.sweeps import journal as journals
from alkd_ray.sweeps.config import HOW_TO_RUN, Sweep
from alkd_ray.sweeps.records import Setting, TrialRecord
from alkd_ray.sweeps.standings import Standing, standings

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORT = "report"  # below the sweep's folder, if there is one
TEST = "test_"


class SweepView:
    """Tells MLflow of a sweep, from its journal and its trials' outputs."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder
        self._base = sweep.of({})
        self._flat_base = flat(self._base.model_dump())
        self._story = Story(folder / journals.FILE, sweep.config.metric, len(self._base.seeds))
        self._written = 0

    def open(self, client: MlflowClient, uri: str) -> SweepTracker:
        """The sweep's runs in a store; settings that are not there will be written."""
        self._story.read_on()
        tracker = SweepTracker(client, uri, self._run())
        self._story.changed |= self._story.by_setting.keys() - tracker.settings.keys()
        return tracker

    def follow(self, tracker: SweepTracker) -> None:
        """Writes the settings whose trials are all over."""
        story = self._story
        story.read_on()
        over = story.new(only_over=True)
        self._write(tracker, over)
        if over:
            tracker.progress(self._figures(), self._best(), story.now)

    def finish(self, tracker: SweepTracker, is_running: bool = False) -> TrackedSweep:
        """Writes all that is left, registers the best student, and ends the sweep's run."""
        story = self._story
        story.read_on()
        self._write(tracker, story.new(only_over=False))
        metric = self.sweep.config.metric
        found = standings(story.records.values(), metric, self._base.seeds)
        best = found[0] if found and found[0].is_whole else None
        figures, curve, model_uri = self._figures(), self._best(), ""
        if best is not None:
            if best.half_width is not None:
                figures[f"best_{metric}_half_width"] = best.half_width
            seconds = (story.now - story.began) / 1000
            last = {"step": story.trials, "seconds": seconds, f"best_{metric}": best.mean}
            curve = [row for row in curve if row["step"] < story.trials] + [last]
            model_uri = self._champion(tracker, best)
        tracker.progress(figures, curve, story.now)
        tracker.progress(self._plain(), (), story.plain_at)
        status, reason = "KILLED", "it was not run to its end"
        if story.ended is not None:
            status = "FINISHED" if story.ended["status"] in ("complete", "partial") else "FAILED"
            reason = story.ended["reason"]
        elif is_running:
            status, reason = "RUNNING", ""
        tags = {
            "alkd.status": story.ended["status"] if story.ended else status.lower(),
            "alkd.reason": reason,
            "alkd.best_setting": best.setting.label if best else "",
        }
        files = {journals.FILE: self.folder / journals.FILE}
        if (self.folder / REPORT).is_dir():
            files[REPORT] = self.folder / REPORT
        tracker.end(status, story.now, tags, files, self._text())
        return TrackedSweep(
            tracker.run.info.run_id,
            tracker.experiment_id,
            {setting: run.info.run_id for setting, run in tracker.settings.items()},
            model_uri,
            self._written,
        )

    def _write(self, tracker: SweepTracker, settings: Sequence[str]) -> None:
        for setting in settings:
            content = self._story.content_of(setting)
            if not tracker.has(setting, content):
                tracker.setting(self._setting(setting, content))
                self._written += 1
            self._story.changed.discard(setting)  # only now: what was not written is still to do

    def _run(self) -> SweepRun:
        config = self.sweep.config
        own = config.model_dump(exclude=HOW_TO_RUN | {"run", "over", "seeds", "name"})
        over = {
            name: json.dumps(axis.model_dump(exclude_none=True))
            for name, axis in config.over.items()
        }
        return SweepRun(
            id=self.sweep.sweep_id,
            experiment=self._base.tracking.experiment,
            params={**flat(own, "sweep."), **self._flat_base, **over},
            began=self._story.began or int(time.time() * 1000),
        )

    def _text(self) -> str:
        """A file that this sweep can be run from."""
        fields = self.sweep.config.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump({**fields, "run": self.sweep.base}, sort_keys=False)

    def _figures(self) -> dict[str, float]:
        statuses = Counter(record.status for record in self._story.records.values())
        shared = self._story.shared
        figures: dict[str, float] = {
            "settings": len(self._story.by_setting),
            "trials_complete": statuses["complete"],
            "trials_dropped": statuses["dropped"],
            "trials_failed": statuses["failed"],
        }
        if shared:
            figures |= {
                "requests": shared["requests"],
                "requests_unshared": shared["unshared"],
                "requests_sent": shared["sent"],
                "cost_dollars": shared["microusd"] / 1e6,
            }
        return figures

    def _best(self) -> list[dict[str, float]]:
        name = f"best_{self.sweep.config.metric}"
        return [
            {"step": row["step"], "seconds": row["seconds"], name: row["mean"]}
            for row in self._story.best
        ]

    def _setting(self, setting: str, content: str) -> SettingRun:
        story, seeds = self._story, self._base.seeds
        unsorted = (story.records[trial] for trial in story.by_setting[setting])
        records = sorted(unsorted, key=lambda record: record.seed)
        complete = [record for record in records if record.status == "complete"]
        config = self.sweep.of(records[0].point)
        [standing] = standings(records, self.sweep.config.metric, seeds)
        of_seed = {r.seed: {**r.metrics, **self._tested(config, r)} for r in complete}
        status = "FAILED" if standing.failed else "FINISHED" if standing.is_whole else "KILLED"
        return SettingRun(
            id=setting,
            content=content,
            title=standing.setting.label,
            status=status,
            params=self._params(config, standing.setting),
            metrics=_means(standing.setting, of_seed),
            history=self._history(config, complete) if standing.is_whole else (),
            table=_table(records, of_seed),
            tags={"alkd.seeds": ",".join(map(str, seeds)), "alkd.state": standing.state},
            began=story.since[setting],
            ended=story.until[setting],
            at=story.at[setting],
        )

    def _params(self, config: RunConfig, setting: Setting) -> dict[str, str | int | float]:
        """The point, and the fields that came to differ from the run's by it."""
        ours = flat(config.model_dump()).items()
        changed = {name: value for name, value in ours if self._flat_base.get(name) != value}
        return {**changed, **flat(setting.point)}

    def _tested(self, config: RunConfig, record: TrialRecord) -> dict[str, float]:
        """Metrics on the test sessions: of the distilled student, and of the two beside it."""
        found = {}
        for role, key in self._story.tested.get(record.trial, {}).items():
            prefix = TEST if role == "distilled" else f"{TEST}{role}_"
            folder = self._output(config, "evaluation", key)
            if folder is not None:
                ranks = read_ranks(folder / "ranks.parquet")
                values = summary(ranks, config.evaluation.cutoffs)
                found |= {prefix + name: value for name, value in values.items()}
        return found

    def _plain(self) -> dict[str, float]:
        """Metrics of the plain counts on the test sessions; equal ones of several finalists once.

        Where the sweep has several datasets, a count's name begins with its dataset's.
        """
        names = {key: name for counts in self._story.plain.values() for name, key in counts.items()}
        outputs = {key: self._output(self._base, "evaluation", key) for key in names}
        there = {key: folder for key, folder in outputs.items() if folder is not None}
        datasets = {}
        if self._has_several_datasets() or len(set(names.values())) < len(names):
            datasets = {key: self._dataset_of(folder) for key, folder in there.items()}
        alike = Counter((names[key], dataset) for key, dataset in datasets.items())
        found = {}
        for key, folder in there.items():
            prefix = f"{TEST}{names[key]}_"
            if dataset := datasets.get(key, ""):
                # Datasets may share a name, as those of one source with other options do.
                way = f"-{key[:8]}" if alike[names[key], dataset] > 1 else ""
                prefix = f"{TEST}{dataset}{way}_{names[key]}_"
            values = summary(read_ranks(folder / "ranks.parquet"), self._base.evaluation.cutoffs)
            found |= {prefix + name: value for name, value in values.items()}
        return found

    def _has_several_datasets(self) -> bool:
        return any(
            field.partition(".")[0] == "data"
            for name, axis in self.sweep.config.over.items()
            if axis.listed is None or len(axis.listed) > 1
            for field in axis.all_fields(name)
        )

    def _dataset_of(self, evaluation: Path) -> str:
        """Name of the dataset that was evaluated on; its key where somebody has removed it."""
        key = json.loads((evaluation / "stage.json").read_text("utf-8"))["inputs"]["dataset"]
        folder = self._output(self._base, "import", key)
        if folder is None:
            return key
        return json.loads((folder / "dataset" / "dataset.json").read_text("utf-8"))["name"]

    def _history(self, config: RunConfig, records: Sequence[TrialRecord]) -> list[dict[str, float]]:
        folders = [self._output(config, "distillation", record.distilled) for record in records]
        texts = [(folder / "history.json").read_text("utf-8") for folder in folders if folder]
        if len(texts) < len(folders):
            return []
        return mean_history([json.loads(text)["history"] for text in texts])

    def _output(self, config: RunConfig, stage: str, key: str) -> Path | None:
        """Folder of a stage's output; None where somebody has removed it."""
        context = Context(config, artifacts.run_root(), Silent())
        try:
            return artifacts.found(context.root, stage, key, context.storage).folder
        except InputError:
            return None

    def _champion(self, tracker: SweepTracker, best: Standing) -> str:
        """Registers the best setting's best seed; "" where its outputs were removed."""
        story, metric = self._story, self.sweep.config.metric
        trials = [story.records[name] for name in story.by_setting[best.setting.id]]
        record = max(trials, key=lambda record: record.metrics[metric])
        config = self.sweep.of(record.point)
        folder = self._output(config, "distillation", record.distilled)
        if folder is None:
            return ""
        inputs = json.loads((folder / "stage.json").read_text("utf-8"))["inputs"]
        context = Context(config, artifacts.run_root(), Silent())

        def write(out: Path) -> None:
            dataset = artifacts.found(context.root, "import", inputs["dataset"], context.storage)
            catalogue = stages.load_dataset(dataset).catalogue
            tested = self._tested(config, record)
            names = [name for name in record.metrics if TEST + name in tested]
            export(
                folder / "checkpoint",
                catalogue,
                config.data.window,
                out,
                test_metrics={name: tested[TEST + name] for name in names},
            )

        facts = {
            "alkd.point": record.setting.label,
            "alkd.seed": str(record.seed),
            f"alkd.{metric}": f"{record.metrics[metric]:.6f}",
        }
        return tracker.champion(
            self.sweep.config.name, best.setting.id, record.distilled, write, facts
        )


def _means(setting: Setting, of_seed: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Metric -> mean over the seeds that have it, ``<metric>_half_width`` -> of its interval."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for values in of_seed.values() for name in values):
        values = {seed: of[name] for seed, of in of_seed.items() if name in of}
        standing = Standing(setting, values, len(values), 0, 0)
        found[name] = standing.mean
        if standing.half_width is not None:
            found[f"{name}_half_width"] = standing.half_width
    return found


def _table(
    records: Sequence[TrialRecord], of_seed: Mapping[int, Mapping[str, float]]
) -> dict[str, list[Any]]:
    """Column -> value of each seed; metrics that a seed does not have are None."""
    names = dict.fromkeys(name for values in of_seed.values() for name in values)
    told = ("seed", "status", "best_step", "steps", "seconds", "node", "distilled", "reason")
    table: dict[str, list[Any]] = {
        column: [getattr(record, column) for record in records] for column in told
    }
    for name in names:
        table[name] = [of_seed.get(record.seed, {}).get(name) for record in records]
    return table
