"""Writes to MLflow's runs and models; each may be repeated without making a duplicate."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
STUDENT_TAG = "alkd.student"
WHOLE_RUN = "run"
PARENT_TAG = "mlflow.parentRunId"
TABLES_TAG = "mlflow.loggedArtifacts"
CHAMPION = "champion"

# MLflow's limits (mlflow.utils.validation); a longer value would be refused.
PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
KEY_CHARACTERS = 250
PARAMS_PER_CALL = 100
ENTITIES_PER_CALL = 1000  # parameters, metrics and tags together
TAGS_PER_CALL = 100


class RunWriter:
    """Writes runs that all bear ``tags`` to one experiment."""

    def __init__(self, client: MlflowClient, experiment_id: str, tags: dict[str, str]) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.tags = tags

    @contextmanager
    def run(self, unfinished: Run | None, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
        """A run, new or going on, that ends FINISHED, or FAILED when its block raises."""
        if unfinished is None:
            run = self.begin(name, tags)
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

    def begin(self, name: str, tags: Mapping[str, str], start_time: int | None = None) -> Run:
        """A new run that is under way, since ``start_time`` (milliseconds) or from now on."""
        shown = {
            **self.tags,
            **tags,
            "mlflow.source.name": f"alkd_ray {__version__}",
            "mlflow.source.type": "LOCAL",
        }
        return self.client.create_run(
            self.experiment_id,
            start_time=start_time,
            tags={_key(k): _cut(v, TAG_CHARACTERS) for k, v in shown.items()},
            run_name=name,
        )

    def values(
        self,
        run: Run,
        params: Mapping[str, str | int | float],
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]] = (),
        model_id: str | None = None,
        prefix: str = "",
        at: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Parameters, final metrics (also those of a logged model), metrics by step, and tags.

        A parameter that the run had when it was found stays: MLflow lets none be changed.
        The names of metrics by step begin with ``prefix``. ``at`` (milliseconds) is the time of
        the final metrics: of two values MLflow shows the later. Tags are written last.
        """
        from mlflow.entities import Metric, Param, RunTag

        # Times derive from the run's start, so that a repeated point is the same point to MLflow.
        start = run.info.start_time
        named = {_key(name): _cut(value, PARAM_CHARACTERS) for name, value in params.items()}
        named = {name: value for name, value in named.items() if name not in run.data.params}
        points = [
            Metric(_key(name), float(value), start if at is None else at, 0, model_id=model_id)
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
        labels = [RunTag(_key(k), _cut(v, TAG_CHARACTERS)) for k, v in (tags or {}).items()]
        # As few calls as MLflow allows: each is a transaction, or a request.
        while entities or points or labels:
            some, entities = entities[:PARAMS_PER_CALL], entities[PARAMS_PER_CALL:]
            room = ENTITIES_PER_CALL - TAGS_PER_CALL - len(some)
            part, points = points[:room], points[room:]
            is_last = not entities and not points
            last, labels = (labels, []) if is_last else ([], labels)
            self.client.log_batch(run.info.run_id, metrics=part, params=some, tags=last)

    def table(self, run: Run, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """A file that MLflow shows as a table; one of that name is replaced.

        MLflow's own call appends to the table, and reads it back first. The run must bear
        :func:`tables_tag`.

        Args:
            run: the run.
            name: of the file, ending in ``.json``.
            columns: column -> its values, of the same number.
        """
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        self.client.log_dict(run.info.run_id, {"columns": list(columns), "data": rows}, name)

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
        exported = [student for student in students if student.export_folder is not None]
        if not exported:
            return ""
        best = max(exported, key=lambda student: student.best_validation)
        run_id = logged[best.title]
        self._make_registered(name)
        known = self.version_of(name, [run_id])
        if known:
            return known
        [model] = self._models(run_id)
        return f"models:/{name}/{self._register(name, run_id, model, {})}"

    def champion(
        self,
        run: Run,
        name: str,
        student: str,
        export: Callable[[Path], None],
        facts: Mapping[str, str],
    ) -> str:
        """A student of ``run`` as a version of model ``name`` that is called champion from now on.

        Args:
            run: the run.
            name: of the registered model; its earlier versions stay.
            student: the student's key; one that is registered already is not exported again.
            export: writes the exported student to a folder.
            facts: of the student, tags of its version.
        """
        self._make_registered(name)
        run_id = run.info.run_id
        number = ""
        for version in self.client.search_model_versions(f"name = '{name}'"):
            if version.run_id == run_id and version.tags.get(STUDENT_TAG) == student:
                number = str(version.version)
        if not number:
            with tempfile.TemporaryDirectory(prefix="alkd-champion-") as scratch:
                export(Path(scratch) / MODEL_NAME)
                model_id = self._model(run, "distilled", Path(scratch) / MODEL_NAME, student)
            model = self.client.get_logged_model(model_id)
            number = self._register(name, run_id, model, {**facts, STUDENT_TAG: student})
        self.client.set_registered_model_alias(name, CHAMPION, number)
        return f"models:/{name}/{number}"

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

    def _make_registered(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _register(self, name: str, run_id: str, model: Any, tags: Mapping[str, str]) -> str:
        """A logged model as the next version of ``name``; the version's number."""
        # The location, not models:/<id>, which MLflow would look up in the process's global store.
        version = self.client.create_model_version(
            name,
            model.artifact_location,
            run_id,
            tags={_key(k): _cut(v, TAG_CHARACTERS) for k, v in {**self.tags, **tags}.items()},
            model_id=model.model_id,
        )
        return str(version.version)

    def _model(self, run: Run, role: str, exported: Path, student: str = "") -> str:
        """An exported student as a logged model of ``run``; its id.

        ``student`` tells the models of one run apart, where it may have several.
        """
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        from alkd_ray.serving import pyfunc_model

        run_id = run.info.run_id
        for left in self._models(run_id):
            if left.tags.get(STUDENT_TAG, "") != student:
                continue
            if left.status == "READY":
                return left.model_id
            self.client.delete_logged_model(left.model_id)
        model = self.client.create_logged_model(
            self.experiment_id,
            MODEL_NAME,
            run_id,
            tags={STUDENT_TAG: student} if student else None,
            model_type=f"{role} recommender",
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


def tables_tag(*names: str) -> dict[str, str]:
    """The tag by which MLflow knows that files of a run are tables."""
    return {TABLES_TAG: json.dumps([{"path": name, "type": "table"} for name in names])}


def _key(name: str) -> str:
    """``name`` in the characters that MLflow allows."""
    return re.sub(r"[^/\w.\- ]", "_", name.replace("@", "_at_"))[:KEY_CHARACTERS]


def _cut(value: Any, limit: int) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
