"""MLflow: a run for the whole, and one below it for each student or each setting of a sweep.

No global run, tracking URI or environment variable of the process is left changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alkd_ray.config import canonical_hash
from alkd_ray.errors import AlkdError
from alkd_ray.runtime._mlflow_connection import artifact_location, connect
from alkd_ray.runtime._mlflow_records import (
    DatasetInput,
    SettingRun,
    StudentRun,
    SweepRun,
    TrackedRun,
)
from alkd_ray.runtime._mlflow_writer import (
    CONTENT_TAG,
    KEY_TAG,
    PARENT_TAG,
    ROLE_TAG,
    WHOLE_RUN,
    RunWriter,
    search_runs,
    tables_tag,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ANNOTATION_PREFIX = "annotation/"
SWEEP_TAG = "alkd.sweep"
SETTING_TAG = "alkd.setting"
HISTORY_TAG = "alkd.history"
SEEDS_FILE = "seeds.json"


def default_tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or an SQLite file below the run root (unset and empty are alike)."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return given or f"sqlite:///{root.resolve() / 'mlflow' / 'mlflow.db'}"


def has_run(uri: str, run_id: str) -> bool:
    """Whether the store has a finished run of that id; one that was deleted it has not.

    Raises:
        AlkdError: the store cannot be reached.
    """
    with connect(uri) as client:
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return found.lifecycle_stage == "active" and found.status == "FINISHED"


def log_pipeline_run(
    *,
    uri: str,
    experiment: str,
    run_key: str,
    run_name: str,
    params: Mapping[str, str | int | float],
    datasets: Sequence[DatasetInput],
    students: Sequence[StudentRun],
    metrics: Mapping[str, float],
    artifacts: Mapping[str, Path],
    annotation: Sequence[Mapping[str, float]] = (),
) -> TrackedRun:
    """Logs a finished run: a parent for the whole, a child for each student, one model version.

    The same content under the same ``run_key`` is logged once: a finished run is found again, one
    whose logging was interrupted is completed. Other content under the same key (the run went on,
    or the code changed) becomes a run of its own, and the earlier one is tagged
    ``alkd.superseded_by``. That holds for one process at a time per ``run_key``; different keys
    may be logged at once.

    Of the students with an ``export_folder`` the one with the best validation becomes the next
    version of the registered model ``run_name``.

    Metric names have ``@`` written as ``_at_``, since MLflow allows no ``@``; numbers that are not
    finite are left out. Values longer than MLflow allows are cut, ending in ``...``.

    Args:
        uri: MLflow's store: ``sqlite:///file`` or a server.
        experiment: name of the experiment, made when it is not there.
        run_key: identifies the run: its name and the hash of its config.
        run_name: what the parent is called; also the registered model.
        params: of the whole run.
        datasets: inputs of every run.
        students: the trained models.
        metrics: of the whole run (its cost).
        artifacts: of the whole run, name -> file or folder.
        annotation: how the annotation went on, each with ``step``, ``seconds`` since its start and
            numbers by name; logged as the whole run's ``annotation/<name>``.

    Raises:
        AlkdError: the store cannot be reached or refuses; the message is one sentence. A store
            that does not answer is given up after about a minute, one that falls silent in
            between after about three (the runs begun are marked as failed first).
    """
    content = canonical_hash(
        {
            "run_name": run_name,
            "params": dict(params),
            "datasets": [[data.name, data.hash] for data in datasets],
            "students": [
                [s.title, dict(s.params), dict(s.metrics), dict(s.tags)] for s in students
            ],
        }
    )
    with connect(uri) as client:
        experiment_id = _experiment(client, experiment, uri)
        earlier = search_runs(client, experiment_id, f"tags.`{KEY_TAG}` = '{run_key}'", WHOLE_RUN)
        same = [run for run in earlier if run.data.tags.get(CONTENT_TAG) == content]
        writer = RunWriter(client, experiment_id, {KEY_TAG: run_key, CONTENT_TAG: content})
        finished = [run for run in same if run.info.status == "FINISHED"]
        if finished:
            found = {
                str(run.info.run_name): run.info.run_id for run in writer.children(finished[0])
            }
            version = writer.version_of(run_name, list(found.values()))
            return TrackedRun(finished[0].info.run_id, experiment_id, found, version, reused=True)
        with writer.run(same[0] if same else None, run_name, {ROLE_TAG: WHOLE_RUN}) as parent:
            writer.values(parent, params, metrics, annotation, prefix=ANNOTATION_PREFIX)
            writer.inputs(parent, datasets)
            writer.files(parent, artifacts)
            logged = writer.students(parent, students, datasets)
            version = writer.register(run_name, students, logged)
        writer.supersede([run for run in earlier if run not in same], parent)
        return TrackedRun(parent.info.run_id, experiment_id, logged, version, reused=False)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location(uri))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another process was first
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise AlkdError(
            f"MLflow's experiment {name!r} was deleted; restore it with `mlflow experiments "
            "restore`, or name another one in tracking.experiment"
        )
    return found.experiment_id


class SweepTracker:
    """A sweep's runs in a store that is open: one for the sweep, one below it for each setting.

    MLflow gives out run ids itself, so runs are found again by their tags; what is there with the
    same content is not written again, what was half written is completed. Of two runs with the
    same tags (a request was sent again after its answer was lost) one is deleted. One process at a
    time may do so for a sweep.

    Attributes:
        experiment_id: the experiment.
        run: of the sweep.
        settings: setting -> its run.
    """

    def __init__(self, client: MlflowClient, uri: str, sweep: SweepRun) -> None:
        """Finds the sweep's runs, or begins the one of the sweep."""
        self.experiment_id = _experiment(client, sweep.experiment, uri)
        self._client = client
        self._sweep = sweep
        self._writer = RunWriter(client, self.experiment_id, {SWEEP_TAG: sweep.id})
        self._in_use: set[str] = set()
        self.settings = self._one_each()
        # Setting -> the content of its run, where that is whole.
        self._contents = {
            setting: run.data.tags.get(CONTENT_TAG, "")
            for setting, run in self.settings.items()
            if run.info.status != "RUNNING"
        }
        known = self.settings.pop("", None)
        if known is None:
            known = self._writer.begin(sweep.id, {ROLE_TAG: "sweep"}, sweep.began)
        elif known.info.status != "RUNNING":
            client.update_run(known.info.run_id, status="RUNNING")
        self.run = known
        self._writer.values(known, sweep.params, {})

    def has(self, setting: str, content: str) -> bool:
        """Whether a setting is there with this content, whole."""
        return self._contents.get(setting) == content

    def setting(self, setting: SettingRun) -> None:
        """Writes a setting; one that is there already is brought up to date in its place.

        A point of a metric by step cannot be taken back, so a run with points that are no longer
        true gives way to a new one (it can be restored in MLflow).
        """
        self._contents.pop(setting.id, None)
        history = {HISTORY_TAG: canonical_hash(list(setting.history))} if setting.history else {}
        run = self.settings.get(setting.id)
        if run is not None and run.data.tags.get(HISTORY_TAG, "") not in ("", *history.values()):
            self._client.delete_run(run.info.run_id)
            run = None
        if run is None:
            lasting = {
                **history,
                **tables_tag(SEEDS_FILE),
                PARENT_TAG: self.run.info.run_id,
                ROLE_TAG: "setting",
                SETTING_TAG: setting.id,
            }
            run = self._writer.begin(setting.title, lasting, setting.began)
            self.settings[setting.id] = run
        self._writer.table(run, SEEDS_FILE, setting.table)
        self._writer.values(
            run,
            setting.params,
            setting.metrics,
            setting.history,
            at=setting.at,
            tags={**setting.tags, **history, CONTENT_TAG: setting.content},
        )
        self._client.set_terminated(run.info.run_id, setting.status, setting.ended)
        self._contents[setting.id] = setting.content

    def progress(
        self, metrics: Mapping[str, float], history: Sequence[Mapping[str, float]], at: int
    ) -> None:
        """How the sweep stands ``at`` a time, and how it came to that by step."""
        self._writer.values(self.run, {}, metrics, history, at=at)

    def champion(
        self,
        name: str,
        setting: str,
        student: str,
        export: Callable[[Path], None],
        facts: Mapping[str, str],
    ) -> str:
        """See :meth:`RunWriter.champion`; of a setting that is there."""
        return self._writer.champion(self.settings[setting], name, student, export, facts)

    def end(
        self, status: str, at: int, tags: Mapping[str, str], files: Mapping[str, Path], text: str
    ) -> None:
        """Adds files and the sweep's own text; ends the sweep's run unless it goes on."""
        self._writer.files(self.run, files)
        self._client.log_text(self.run.info.run_id, text, "sweep.yaml")
        self._writer.values(self.run, {}, {}, tags=tags)
        self._in_use = {run.info.run_id for run in (self.run, *self.settings.values())}
        self._one_each()
        if status != "RUNNING":
            self._client.set_terminated(self.run.info.run_id, status, at)

    def _one_each(self) -> dict[str, Run]:
        """Setting -> its run, "" -> the sweep's; of several of the same the others are deleted."""
        found: dict[str, Run] = {}
        wanted = f"tags.`{SWEEP_TAG}` = '{self._sweep.id}'"
        runs = search_runs(self._client, self.experiment_id, wanted)
        for run in sorted(runs, key=self._worth_keeping):
            name = run.data.tags.get(SETTING_TAG, "")
            if name in found:
                self._client.delete_run(run.info.run_id)
            else:
                found[name] = run
        return found

    def _worth_keeping(self, run: Run) -> tuple[bool, bool, str]:
        """Sorts first what is in use, then what is whole."""
        run_id = run.info.run_id
        return run_id not in self._in_use, run.info.status == "RUNNING", run_id
