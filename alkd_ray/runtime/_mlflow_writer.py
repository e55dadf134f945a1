"""The writes of one pipeline run to MLflow; each may be repeated without making a duplicate."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from alkd_ray import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from alkd_ray.runtime._mlflow_records import DatasetInput, StudentRun

MODEL_NAME = "student"
KEY_TAG = "alkd.run_key"
CONTENT_TAG = "alkd.content"
ROLE_TAG = "alkd.role"
SUPERSEDED_TAG = "alkd.superseded_by"
WHOLE_RUN = "run"
PARENT_TAG = "mlflow.parentRunId"

# MLflow's limits (mlflow.utils.validation); a longer value would be refused.
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
KEY_CHARACTERS = 250
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000


class RunWriter:
    """Writes the runs of one pipeline run, all bearing ``tags``, to one experiment."""

    def __init__(self, client: MlflowClient, experiment_id: str, tags: dict[str, str]) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.tags = tags

    @contextmanager
    def run(self, unfinished: Run | None, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """A run, new or going on, that ends FINISHED, or FAILED when its block raises."""
        if unfinished is None:
            shown = {
                **self.tags,
                **tags,
                "mlflow.source.name": f"alkd_ray {__version__}",
                "mlflow.source.type": "LOCAL",
            }
            run = self.client.create_run(
                self.experiment_id,
                tags={_key(k): _cut(v, TAG_CHARACTERS) for k, v in shown.items()},
                run_name=name,
            )
        else:
            run = unfinished
            self.client.update_run(run.info.run_id, status="RUNNING")
        try:
            yield run
        except BaseException:
            with suppress(Exception):  # the store may be what failed
                self.client.set_terminated(run.info.run_id, "FAILED")
            raise
        self.client.set_terminated(run.info.run_id, "FINISHED")

    def values(
        self,
        run: Run,
        params: Mapping[str, str | int | float],
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]] = (),
        model_id: str | None = None,
        prefix: str = "",
    ) -> None:
        """Parameters, final metrics (also those of a logged model) and metrics by step.

        The names of metrics by step begin with ``prefix``.
        """
        from mlflow.entities import Metric, Param

        # Times derive from the run's start, so that a repeated point is the same point to MLflow.
        start = run.info.start_time
        named = {_key(name): _cut(value, PARAM_CHARACTERS) for name, value in params.items()}
        points = [
            Metric(_key(name), float(value), start, 0, model_id=model_id)
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        for row in history:
            when = start + int(1000 * row.get("seconds", 0))
            points += [
                Metric(_key(prefix + name), float(value), when, int(row["step"]))
                for name, value in row.items()
                if name != "step" and math.isfinite(value)
            ]
        entities = [Param(name, value) for name, value in named.items()]
        for start_at in range(0, len(entities), PARAMS_PER_CALL):
            part = entities[start_at : start_at + PARAMS_PER_CALL]
            self.client.log_batch(run.info.run_id, params=part)
        for start_at in range(0, len(points), METRICS_PER_CALL):
            part = points[start_at : start_at + METRICS_PER_CALL]
            self.client.log_batch(run.info.run_id, metrics=part)

    def inputs(self, run: Run, datasets: Sequence[DatasetInput]) -> None:
        """The datasets, with our fingerprint as the digest."""
        from mlflow import entities

        self.client.log_inputs(
            run.info.run_id,
            [
                entities.DatasetInput(
                    entities.Dataset(
                        name=data.name,
                        digest=data.hash,
                        source_type="local",
                        source=json.dumps({"uri": str(data.folder)}),
                        profile=json.dumps({"source": data.source, **data.rows}, default=str),
                    ),
                    [entities.InputTag("mlflow.data.context", "training")],
                )
                for data in datasets
            ],
        )

    def files(self, run: Run, artifacts: Mapping[str, Path]) -> None:
        """Files and folders under the names they shall have."""
        for name, path in artifacts.items():
            wanted = PurePosixPath(name)
            if path.is_dir():
                self.client.log_artifacts(run.info.run_id, str(path), name)
                continue
            parent = None if wanted.parent == PurePosixPath() else str(wanted.parent)
            if path.name == wanted.name:
                self.client.log_artifact(run.info.run_id, str(path), parent)
                continue
            with tempfile.TemporaryDirectory(prefix="alkd-log-") as scratch:  # MLflow renames none
                copy = shutil.copy(path, Path(scratch) / wanted.name)
                self.client.log_artifact(run.info.run_id, str(copy), parent)

    def students(
        self, parent: Run, students: Sequence[StudentRun], datasets: Sequence[DatasetInput]
    ) -> dict[str, str]:
        """A child for each student that has none yet; ``<name>-<seed>`` -> run id."""
        children = {child.info.run_name: child for child in self.children(parent)}
        logged = {}
        for student in students:
            child = children.get(student.title)
            if child is None or child.info.status != "FINISHED":
                tags = {
                    **student.tags,
                    PARENT_TAG: parent.info.run_id,
                    ROLE_TAG: student.name,
                    "alkd.seed": str(student.seed),
                }
                with self.run(child, student.title, tags) as child:
                    model_id = None
                    if student.export_folder is not None:
                        model_id = self._model(child, student.name, student.export_folder)
                    self.values(child, student.params, student.metrics, model_id=model_id)
                    self.values(child, {}, student.cost, student.history)
                    self.inputs(child, datasets)
                    self.files(child, student.artifacts)
            logged[student.title] = child.info.run_id
        return logged

    def register(self, name: str, students: Sequence[StudentRun], logged: Mapping[str, str]) -> str:
        """The best exported student as the next version of model ``name``; "" = none exported."""
        from mlflow.exceptions import MlflowException

        exported = [student for student in students if student.export_folder is not None]
        if not exported:
            return ""
        best = max(exported, key=lambda student: student.best_validation)
        run_id = logged[best.title]
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self.version_of(name, [run_id])
        if known:
            return known
        [model] = self._models(run_id)
        # The location, not models:/<id>, which MLflow would look up in the process's global store.
        version = self.client.create_model_version(
            name, model.artifact_location, run_id, tags=self.tags, model_id=model.model_id
        )
        return f"models:/{name}/{version.version}"

    def children(self, parent: Run) -> list[Run]:
        """The students' runs below ``parent``."""
        wanted = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
        return search_runs(self.client, self.experiment_id, wanted)

    def version_of(self, name: str, run_ids: Sequence[str]) -> str:
        """The version of model ``name`` that one of the runs logged; "" = none."""
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.run_id in run_ids:
                return f"models:/{name}/{version.version}"
        return ""

    def supersede(self, earlier: Sequence[Run], by: Run) -> None:
        """Marks runs of the same key with other content; ends those that were never finished."""
        for run in earlier:
            if SUPERSEDED_TAG not in run.data.tags:
                self.client.set_tag(run.info.run_id, SUPERSEDED_TAG, by.info.run_id)
                for one in (run, *self.children(run)):
                    if one.info.status == "RUNNING":
                        self.client.set_terminated(one.info.run_id, "KILLED")

    def _model(self, run: Run, role: str, exported: Path) -> str:
        """An exported student as a logged model of ``run``; its id."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        from alkd_ray.serving import pyfunc_model

        run_id = run.info.run_id
        for left in self._models(run_id):
            if left.status == "READY":
                return left.model_id
            self.client.delete_logged_model(left.model_id)
        model = self.client.create_logged_model(
            self.experiment_id, MODEL_NAME, run_id, model_type=f"{role} recommender"
        )
        description = Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        with tempfile.TemporaryDirectory(prefix="alkd-model-") as scratch:
            pyfunc_model.save(exported, Path(scratch) / "model", description)
            self.client.log_model_artifacts(model.model_id, str(Path(scratch) / "model"))
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.finalize_logged_model(model.model_id, "READY")
        return model.model_id

    def _models(self, run_id: str) -> list[Any]:
        found = self.client.search_logged_models(
            [self.experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
        return list(found)


def search_runs(client: MlflowClient, experiment_id: str, wanted: str, role: str = "") -> list[Run]:
    """All runs of a filter, newest first."""
    if role:
        wanted += f" AND tags.`{ROLE_TAG}` = '{role}'"
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], wanted, order_by=["attributes.start_time DESC"], page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return runs


def _key(name: str) -> str:
    """``name`` in the characters that MLflow allows."""
    return re.sub(r"[^/\w.\- ]", "_", name.replace("@", "_at_"))[:KEY_CHARACTERS]


def _cut(value: Any, limit: int) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
