"""MLflow: one run per student below one run for the whole, logged by explicit ids.

No global run, tracking URI or environment variable of the process is left changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alkd_ray.config import canonical_hash
from alkd_ray.errors import AlkdError
from alkd_ray.runtime._mlflow_connection import artifact_location, connect
from alkd_ray.runtime._mlflow_records import DatasetInput, StudentRun, TrackedRun
from alkd_ray.runtime._mlflow_writer import (
    CONTENT_TAG,
    KEY_TAG,
    ROLE_TAG,
    WHOLE_RUN,
    RunWriter,
    search_runs,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANNOTATION_PREFIX = "annotation/"


def default_tracking_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or an SQLite file below the run root (unset and empty are alike)."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return given or f"sqlite:///{root.resolve() / 'mlflow' / 'mlflow.db'}"


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
