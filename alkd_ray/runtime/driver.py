"""Runs the pipeline with Ray behind its seams, records it, and tells MLflow."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alkd_ray import __version__, artifacts, pipeline, plans, reached
from alkd_ray.annotation import worker
from alkd_ray.annotation.planning import Plan
from alkd_ray.config import RunConfig
from alkd_ray.errors import AlkdError
from alkd_ray.pipeline import Engines
from alkd_ray.plans import Reread
from alkd_ray.results import RunResult
from alkd_ray.runtime._mlflow_connection import without_password
from alkd_ray.runtime.threads import one_thread
from alkd_ray.scoring import ScoreJob, score_in_process
from alkd_ray.stages import Context, Listener

# For engine `auto`: below this many sessions one process is done before Ray Data has started.
RAY_DATA_FROM_SESSIONS = 2_000_000


@dataclass(frozen=True, slots=True)
class Finished:
    """A run, and where to look.

    Attributes:
        result: all outputs.
        record: the run's record, a JSON file.
        tracking_uri: MLflow's store, "" when it was not used.
        tracking_run_id: the MLflow run that holds the students' runs, "" when there is none.
        warning: why MLflow has no run although it should; "" normally.
        lines: what a run that ends before its report has to show.
    """

    result: RunResult
    record: Path
    tracking_uri: str = ""
    tracking_run_id: str = ""
    warning: str = ""
    lines: tuple[str, ...] = ()


Approve = Callable[[Plan], None]


def execute(
    config: RunConfig,
    listener: Listener,
    until: str = "report",
    approve: Approve | None = None,
) -> Finished:
    """Runs ``config`` up to stage ``until``; a whole run is logged to MLflow.

    ``approve`` is shown what will be paid before anything is sent, and raises to send nothing.

    Ray is started only when a stage that needs it has work to do, and ended before returning.
    A tracking server that cannot be reached loses nothing: the run is on disk, the warning says
    so, and the same command logs it later.
    """
    one_thread()
    root = artifacts.run_root()
    root.mkdir(parents=True, exist_ok=True)
    try:
        engines = engines_of(config, root)
        if approve is not None:
            engines = replace(engines, approve=approve)
        result = pipeline.run(config, root, listener, engines, until)
    finally:
        end_ray()
    record = root / "records" / result.run_id / "run.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    earlier = _earlier(record)
    found = _describe(result)
    lines = reached.lines(Context(config, root, listener), result, until)
    finished = Finished(result, record, lines=tuple(lines))
    if result.report is not None and config.tracking.enabled:
        finished = _track(
            result, record, earlier if earlier.get("outputs") == found["outputs"] else {}
        )
    if until in ("evaluation", "report") and "ranks of student" in result.by_seed:
        artifacts.write_json(record.with_name("metrics.json"), reached.metrics(result))
    if until == "report":
        uri = without_password(finished.tracking_uri)
        found["tracking"] = {"uri": uri, "run_id": finished.tracking_run_id}
    else:  # the same config was run further before: what it made then is still there
        found["outputs"] = {**earlier.get("outputs", {}), **found["outputs"]}
        found["tracking"] = earlier.get("tracking", {"uri": "", "run_id": ""})
    artifacts.write_json(record, found)
    return finished


def plan(config: RunConfig, listener: Listener) -> Plan | None:
    """What the rankings of ``config`` will cost; None where nothing is asked. Sends nothing."""
    found = _before_the_first_request(config, listener)
    return None if found is None else plans.plan(*found)


def reread(config: RunConfig, listener: Listener) -> Reread | None:
    """Reads the stored answers of ``config`` anew; None where there are none. Sends nothing."""
    found = _before_the_first_request(config, listener)
    return None if found is None else plans.reread(*found)


def _before_the_first_request(
    config: RunConfig, listener: Listener
) -> tuple[Context, plans.Inputs] | None:
    one_thread()
    root = artifacts.run_root()
    root.mkdir(parents=True, exist_ok=True)
    try:
        result = pipeline.run(config, root, listener, engines_of(config, root), "candidates")
    finally:
        end_ray()
    if "candidates" not in result.by_seed:
        return None
    by_seed = result.by_seed
    inputs = plans.Inputs(result.dataset, by_seed["teacher"], by_seed["candidates"], result.run_id)
    return Context(config, root, listener), inputs


def engines_of(config: RunConfig, root: Path) -> Engines:
    """The forms of the two seams; Ray's are imported when called.

    How sessions are scored the config says; how is asked, each job itself: jobs of a sweep's
    settings may be for different LLMs, some of them asked in batches.
    """

    def score(job: ScoreJob, out: Path) -> None:
        if config.difficulty.engine == "local" or (
            config.difficulty.engine == "auto" and _rows(job.shards) < RAY_DATA_FROM_SESSIONS
        ):
            score_in_process(job, out)
        else:
            from alkd_ray.runtime import scoring

            scoring.score(job, out)

    def annotate(job: worker.AnnotationJob, progress: Any = None) -> Any:
        # A replay reads a table, a batch is waited for: there is nothing to do in parallel.
        is_one_worker = job.llm.teacher == "replay" or job.annotation.mode == "batch"
        if job.annotation.engine == "local" or is_one_worker:
            return worker.annotate(job, progress)
        from alkd_ray.runtime import annotators

        return annotators.annotate(job, progress)

    return Engines(score, annotate)


def _track(result: RunResult, record: Path, earlier: dict[str, Any]) -> Finished:
    from alkd_ray.runtime import run_log, tracking

    uri = tracking.default_tracking_uri(artifacts.run_root())
    known = earlier.get("tracking", {})
    is_known = known.get("run_id") and known.get("uri") == without_password(uri)
    try:
        if is_known and tracking.has_run(uri, known["run_id"]):
            return Finished(result, record, uri, known["run_id"])
        tracked = run_log.log(result, uri)
    except AlkdError as error:
        return Finished(result, record, uri, "", str(error))
    return Finished(result, record, uri, tracked.run_id)


def _describe(result: RunResult) -> dict[str, Any]:
    outputs: dict[str, Any] = {"dataset": str(result.dataset.folder)}
    for name, by_seed in result.by_seed.items():
        outputs[name] = {str(seed): str(output.folder) for seed, output in by_seed.items()}
    for name, output in result.baselines.items():
        outputs[f"ranks of {name}"] = str(output.folder)
    if result.annotation is not None:
        outputs["annotation"] = str(result.annotation.output.folder)
    if result.report is not None:
        outputs["report"] = str(result.report.folder)
    return {
        "name": result.config.name,
        "run_id": result.run_id,
        "status": result.status,
        "reason": result.reason,
        "code_version": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": result.config.model_dump(),
        "outputs": outputs,
        "cost": asdict(result.annotation.cost) if result.annotation else None,
    }


def _earlier(record: Path) -> dict[str, Any]:
    if not record.is_file():
        return {}
    return json.loads(record.read_text("utf-8"))


def _rows(shards: Path) -> int:
    import pyarrow.dataset as arrow_dataset

    return arrow_dataset.dataset(shards, format="parquet").count_rows()


def end_ray() -> None:
    """Ends Ray, or this process's connection to it."""
    if has_ray():
        from alkd_ray.runtime import cluster

        cluster.shutdown()


def has_ray() -> bool:
    """Whether this process has Ray at hand, begun or joined; looks without importing it."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()
