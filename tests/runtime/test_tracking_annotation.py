"""What an annotation tells MLflow: its figures by step, and a trace for each answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace

from alkd_ray import config
from alkd_ray.annotation import pricing, worker
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import Ledger
from alkd_ray.annotation.store import Store, StoredAnswer
from alkd_ray.artifacts import StageOutput
from alkd_ray.bought import Bought, Cost
from alkd_ray.errors import AlkdError
from alkd_ray.results import RunResult
from alkd_ray.runtime import driver, run_log, tracking
from alkd_ray.runtime.request_traces import log_request_traces
from alkd_ray.types import Amounts, Caps, LedgerState, Usage
from tests.annotation_rows import MODEL, RATES, job, serving
from tests.runtime.test_tracking import mlflow_server, store_below

KEY = "sk-a-secret-that-must-not-be-logged-0123456789"
FIGURES = ("answered", "failed", "sent", "settled_dollars", "held_dollars", "unresolved_dollars")


class Silent:
    """Hears of stages and says nothing."""

    def stage_started(self, stage: str, seed: int | None) -> None: ...

    def stage_finished(self, output: StageOutput, seed: int | None) -> None: ...

    def progress(self, done: int, total: int, text: str) -> None: ...


@dataclass(frozen=True)
class Bills:
    """Books with answers in them."""

    books: Path | str
    keys: list[str]
    answers: dict[str, list[StoredAnswer]]

    @property
    def count(self) -> int:
        return sum(len(stored) for stored in self.answers.values())


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> Bills:
    """A pass against an endpoint that breaks some answers off, so that they are asked again."""
    folder = tmp_path_factory.mktemp("bills")
    with serving(folder, "--truncated-share", ".2") as server:
        here = job(folder / "store", server.url, count=130)
        outcome = worker.annotate(here)
        billed = server.bill()["requests"]
    keys = [annotation.key for annotation in outcome.annotations]
    with Database(here.books, read_only=True) as database:
        answers = Store(database).answers(keys)
    found = Bills(here.books, keys, answers)
    assert found.count == billed > len(keys) == 130
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    """A server; starting one takes seconds."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "server.db").write_bytes(empty_store.read_bytes())
    with mlflow_server(folder) as uri:
        yield uri


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store_below(tmp_path, empty_store)


def run_of(uri: str, name: str, experiment: str = "traced", **more: Any) -> tracking.TrackedRun:
    """A run without students."""
    given: dict[str, Any] = {"params": {}, "datasets": [], "students": [], "metrics": {}}
    return tracking.log_pipeline_run(
        uri=uri,
        experiment=experiment,
        run_key=name,
        run_name=name,
        **{**given, "artifacts": {}, **more},
    )


def log_traces(uri: str, run: tracking.TrackedRun, bills: Bills) -> int:
    return log_request_traces(
        uri=uri,
        experiment_id=run.experiment_id,
        run_id=run.run_id,
        books=bills.books,
        keys=bills.keys,
    )


def traces(uri: str, experiment_id: str, run_id: str | None = None) -> list[Trace]:
    """All traces of a run, as its list in the UI asks for them; of the experiment for None."""
    found: list[Trace] = []
    token = None
    while True:
        page = MlflowClient(uri).search_traces(
            locations=[experiment_id], run_id=run_id, max_results=200, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def test_an_answer_is_a_trace_with_all_that_is_known(uri: str, bills: Bills) -> None:
    run = run_of(uri, "one")
    assert log_traces(uri, run, bills) == bills.count
    check_traces(uri, run, bills)


def test_a_server_gets_the_same_traces(served: str, bills: Bills) -> None:
    run = run_of(served, "one")
    assert log_traces(served, run, bills) == log_traces(served, run, bills) == bills.count
    check_traces(served, run, bills)


def test_an_answer_has_one_trace_however_often_and_for_whom_it_is_logged(
    uri: str, bills: Bills
) -> None:
    some = replace(bills, keys=bills.keys[:20])
    first, second = run_of(uri, "one"), run_of(uri, "two")
    # As if the first logging had broken off after twenty questions.
    begun = log_traces(uri, first, some)
    assert begun < log_traces(uri, first, bills) == log_traces(uri, first, bills) == bills.count
    assert log_traces(uri, second, some) == begun
    ids = [trace.info.trace_id for trace in traces(uri, first.experiment_id)]
    assert len(ids) == len(set(ids)) == bills.count
    assert set(ids) == {t.info.trace_id for t in traces(uri, first.experiment_id, first.run_id)}
    shared = {t.info.trace_id for t in traces(uri, first.experiment_id, second.run_id)}
    assert len(shared) == begun
    assert shared < set(ids)
    # Another experiment has its own.
    third = run_of(uri, "three", experiment="elsewhere")
    assert log_traces(uri, third, some) == begun
    others = {t.info.trace_id for t in traces(uri, third.experiment_id)}
    assert len(others) == begun
    assert not others & set(ids)


def test_tracing_changes_nothing_of_the_process(
    uri: str, tmp_path: Path, bills: Bills, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(uri, "one")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def state() -> tuple[Any, ...]:
        active = mlflow.active_run(), mlflow.get_current_active_span()
        return dict(os.environ), mlflow.get_tracking_uri(), *active

    before = state()
    log_traces(uri, run, replace(bills, keys=bills.keys[:5]))
    assert state() == before
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("store", ["uri", "served"])
def test_strange_answers_are_shown_as_well_as_can_be(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = request.getfixturevalue(store)
    strange = {
        "half a pair": '{"choices": [{"message": {"role": "assistant", "content": "\\ud83d!"}}]}',
        "raw half": "no JSON \ud83d",
        "zero byte": '{"text": "a\\u0000b"}',
        "too deep": "[" * 5000 + "]" * 5000,
        "rather deep": "[" * 90 + "]" * 90,
        "too large": '{"created": 123456789012345678901234567890}',
        "not finite": '{"created": NaN}',
        "in a string": json.dumps('{"created": NaN}'),
        "empty": "",
        "long": json.dumps({"text": "Düne 砂丘 " * 60_000}),
    }
    with Database(tmp_path / "books.sqlite") as database:
        buy(database, strange)
    bills = Bills(tmp_path / "books.sqlite", list(strange), {})
    run = run_of(uri, "strange", experiment="strange")
    assert log_traces(uri, run, bills) == len(strange)
    found = {
        trace.info.tags["alkd.request_key"]: trace.data.spans[0]
        for trace in traces(uri, run.experiment_id, run.run_id)
    }
    shown = {name: span.outputs for name, span in found.items()}
    assert shown["half a pair"]["choices"][0]["message"]["content"] == "\\ud83d!"
    assert shown["raw half"] == {"raw": "no JSON \\ud83d"}
    assert shown["zero byte"] == {"text": "a\\u0000b"}
    assert shown["long"] == json.loads(strange["long"])
    for name in ("too deep", "rather deep", "too large", "not finite", "in a string", "empty"):
        assert shown[name] == {"raw": strange[name]}, name
    assert all(span.llm_cost == {"total_cost": 0.000007} for span in found.values())
    assert {span.get_attribute("alkd.endpoint") for span in found.values()} == {"http://host/v1"}
    assert all(span.get_attribute("mlflow.chat.tokenUsage") is None for span in found.values())


def test_recorded_rankings_and_unanswered_requests_have_no_trace(uri: str, tmp_path: Path) -> None:
    with Database(tmp_path / "books.sqlite") as database:
        store = Store(database)
        for key in ("recorded", "unanswered"):
            put_request(store, key, body="")
        store.put_answer("recorded", 1, "[1, 2]", usage=None, cost_microusd=0, hold_id="")
        buy(database, {"asked": "{}"})
    keys = ["recorded", "unanswered", "never stored", "asked", "asked"]
    run = run_of(uri, "one")
    assert log_traces(uri, run, Bills(tmp_path / "books.sqlite", keys, {})) == 1
    [trace] = traces(uri, run.experiment_id)
    assert trace.info.tags["alkd.request_key"] == "asked"


def test_the_cost_is_in_parts_where_the_rates_explain_it(uri: str, tmp_path: Path) -> None:
    usage = Usage(1_000, 100, 400)
    with Database(tmp_path / "books.sqlite") as database:
        rates = pricing.rates_of(MODEL, "", {**RATES, "cached_input_usd_per_million": 0.1})
        exact = pricing.cost_microusd(rates, usage)
        buy(database, {"explained": "{}"}, usage, exact)
        buy(database, {"settled by other rates": "{}"}, usage, exact + 5)
        Ledger(database).note_rates("test", MODEL, rates)
    keys = ["explained", "settled by other rates"]
    run = run_of(uri, "one")
    log_traces(uri, run, Bills(tmp_path / "books.sqlite", keys, {}))
    found = {
        trace.info.tags["alkd.request_key"]: trace.data.spans[0]
        for trace in traces(uri, run.experiment_id)
    }
    # 600 x 0.15 + 400 x 0.1 for the prompt, 100 x 0.6 for the answer, per million.
    assert found["explained"].llm_cost == pytest.approx(
        {"input_cost": 130e-6, "output_cost": 60e-6, "total_cost": 190e-6}
    )
    assert found["settled by other rates"].llm_cost == {"total_cost": 195e-6}
    assert found["explained"].get_attribute("mlflow.chat.tokenUsage") == {
        "input_tokens": 1_000,
        "output_tokens": 100,
        "total_tokens": 1_100,
        "cache_read_input_tokens": 400,
    }


def test_figures_by_step_end_with_those_of_the_ledger(uri: str, tmp_path: Path) -> None:
    points = [
        {
            "seconds": step / 2,
            "done": step,
            "total": 500,
            "failed": 0,
            "in_flight": 8,
            "sent": step + 8,
            "requests_per_second": 2.0,
            "tokens_per_second": 900.5,
            "settled_microusd": 7 * step,
            "held_microusd": 80,
            "unresolved_microusd": 0,
            "settled_tokens": 450 * step,
        }
        for step in range(500)
    ]
    (tmp_path / "progress.json").write_text(json.dumps(points))
    history = run_log.annotation_history(bought(tmp_path))
    run = run_of(uri, "one", annotation=history)
    assert run_of(uri, "one", annotation=history) == replace(run, reused=True)
    client = MlflowClient(uri)

    def by_step(name: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(run.run_id, f"annotation/{name}")
        return [(point.step, point.value) for point in found]

    assert by_step("done") == [(step, float(step)) for step in range(500)]
    assert by_step("tokens_per_second") == [(step, 900.5) for step in range(500)]
    settled = {**{step: 7e-6 * step for step in range(500)}, 500: 0.0035}
    assert dict(by_step("settled_dollars")) == pytest.approx(settled)
    started = client.get_run(run.run_id).info.start_time
    times = client.get_metric_history(run.run_id, "annotation/sent")
    assert [point.timestamp - started for point in times[:3]] == [0, 500, 1000]
    last = client.get_run(run.run_id).data.metrics
    assert {name: last[f"annotation/{name}"] for name in FIGURES} == {
        "answered": 497,
        "failed": 3,
        "sent": 510,
        "settled_dollars": 0.0035,
        "held_dollars": 0.0,
        "unresolved_dollars": 0.00004,
    }
    assert last["annotation/cap_dollars"] == 0.01
    assert last["annotation/settled_tokens"] == 225_000


@pytest.mark.parametrize("progress", [None, "", "[]"])
def test_an_output_without_points_has_its_final_figures(
    tmp_path: Path, progress: str | None
) -> None:
    if progress is not None:
        (tmp_path / "progress.json").write_text(progress)
    [last] = run_log.annotation_history(bought(tmp_path, Caps(tokens=10)))
    assert (last["step"], last["seconds"], last["settled_dollars"]) == (0, 260.0, 0.0035)
    assert "cap_dollars" not in last


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[driver.Finished]:
    """A whole run in this process against an endpoint that demands a key, with traces."""
    folder = tmp_path_factory.mktemp("whole")
    training = {"training": {"max_steps": 40}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_TRACED_KEY", KEY)
        patch.setenv("ALKD_HOME", str(folder / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.setenv("ALKD_BOOKS", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        flags = ["--api-key-env", "TEST_TRACED_KEY", "--truncated-share", ".2"]
        with serving(folder, *flags) as server:
            options = {"base_url": server.url, "model": MODEL, "rates": RATES}
            given = {
                "name": "traced",
                "data": {"source": "synthetic", "options": {"size": "tiny"}},
                "teacher": {"dim": 8, **training},
                "student": {"dim": 4, **training},
                "candidates": {"size": 20},
                "difficulty": {"engine": "local"},
                "selection": {"budget": 20},
                "llm": {
                    "teacher": "openai-chat",
                    "options": {**options, "api_key_env": "TEST_TRACED_KEY"},
                },
                "annotation": {"wanted": 10, "engine": "local", "in_flight": 8},
                "distillation": training,
                "evaluation": {"resamples": 100, "baselines": ["popularity"]},
                "tracking": {"experiment": "whole", "trace_requests": True},
            }
            done = driver.execute(config.make(given), Silent())
            assert done.warning == ""
            billed = server.bill()["requests"]
        listed = traces(done.tracking_uri, _experiment(done), done.tracking_run_id)
        assert len(listed) == billed > 21
        yield done


def test_a_run_logs_the_traces_of_its_rankings_and_hints(finished: driver.Finished) -> None:
    uri, run_id = finished.tracking_uri, finished.tracking_run_id
    found = traces(uri, _experiment(finished), run_id)
    kinds = [trace.info.tags["mlflow.traceName"] for trace in found]
    assert kinds.count("hints") == 1
    keys = run_log.request_keys(finished.result)
    assert {trace.info.tags["alkd.request_key"] for trace in found} == set(keys)
    total = sum(trace.data.spans[0].get_attribute("alkd.cost_microusd") for trace in found)
    metrics = MlflowClient(uri).get_run(run_id).data.metrics
    assert total / 1e6 == pytest.approx(metrics["cost_dollars"])
    assert metrics["annotation/settled_dollars"] == pytest.approx(total / 1e6)
    assert metrics["annotation/answered"] == 20


def test_no_key_reaches_mlflow_or_anything_else_of_the_run(finished: driver.Finished) -> None:
    root = finished.record.parents[2]
    files = [path for path in root.rglob("*") if path.is_file()]
    assert root / "mlflow" / "mlflow.db" in files
    assert root / "store" / "books.sqlite" in files
    # The search would find it: titles and prompts are in these files as they were sent.
    assert b"rank the items" in (root / "mlflow" / "mlflow.db").read_bytes()
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_traces_that_fail_do_not_lose_the_run(
    finished: driver.Finished, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The books are not where they were: the outputs are all there, the answers are not.
    monkeypatch.setenv("ALKD_BOOKS", "")
    monkeypatch.setenv("ALKD_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(AlkdError, match=r"the traces of its requests .*there are no books"):
        run_log.log(finished.result, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("whole")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "tags.`alkd.role` = 'run'")
    assert run.info.status == "FINISHED"
    monkeypatch.setenv("ALKD_HOME", str(finished.record.parents[2]))
    again = run_log.log(finished.result, uri)
    assert (again.run_id, again.reused) == (run.info.run_id, True)
    assert len(traces(uri, experiment.experiment_id, run.info.run_id)) > 20


def test_without_the_option_there_are_no_traces(finished: driver.Finished, uri: str) -> None:
    plain: RunResult = replace(
        finished.result,
        config=finished.result.config.model_copy(
            update={"tracking": config.TrackingConfig(experiment="plain")}
        ),
    )
    tracked = run_log.log(plain, uri)
    assert traces(uri, tracked.experiment_id) == []
    assert MlflowClient(uri).get_run(tracked.run_id).info.status == "FINISHED"


def check_traces(uri: str, run: tracking.TrackedRun, bills: Bills) -> None:
    found = traces(uri, run.experiment_id, run.run_id)
    assert len(found) == bills.count
    with Database(bills.books, read_only=True) as database:
        requests = Store(database).requests(bills.keys)
        holds = {hold.hold_id: hold for hold in Ledger(database).entries()}
    for trace in found:
        [span] = trace.data.spans
        key, attempt = trace.info.tags["alkd.request_key"], span.get_attribute("alkd.attempt")
        [answer] = [one for one in bills.answers[key] if one.attempt == attempt]
        hold = holds[answer.hold_id]
        assert (span.name, span.span_type) == ("rank", "CHAT_MODEL")
        assert span.inputs == json.loads(requests[key].body)
        assert span.outputs == json.loads(answer.raw)
        assert span.model_name == MODEL
        assert answer.usage is not None
        assert trace.info.token_usage == {
            "input_tokens": answer.usage.prompt_tokens,
            "output_tokens": answer.usage.completion_tokens,
            "total_tokens": answer.usage.total_tokens,
        }
        assert span.llm_cost is not None
        parts = span.llm_cost["input_cost"] + span.llm_cost["output_cost"]
        assert parts == pytest.approx(span.llm_cost["total_cost"])
        assert span.llm_cost["total_cost"] == answer.cost_microusd / 1e6
        assert span.get_attribute("session.id") == str(requests[key].session_id)
        assert span.get_attribute("alkd.asked_again") == (attempt == 2)
        times = span.start_time_ns, span.end_time_ns
        assert times == (_nanoseconds(hold.held_at), _nanoseconds(hold.ended_at))
        assert trace.info.state == "OK"


def buy(
    database: Database,
    raw: Mapping[str, str],
    usage: Usage | None = None,
    cost_microusd: int = 7,
) -> None:
    """Books an answer for each key, as a pass does."""
    store, ledger = Store(database), Ledger(database)
    ledger.open_budget("test", Caps())
    for key, text in raw.items():
        put_request(store, key, json.dumps({"messages": [{"role": "user", "content": key}]}))
        assert ledger.hold("test", f"hold of {key}", Amounts(1000, 2000, 1), key=key) == ""
        ledger.settle(f"hold of {key}", Amounts(cost_microusd, 5, 1))
        store.put_answer(
            key, 1, text, usage=usage, cost_microusd=cost_microusd, hold_id=f"hold of {key}"
        )


def put_request(store: Store, key: str, body: str) -> None:
    store.put_request(
        key,
        endpoint="http://user:secret@host/v1",
        model=MODEL,
        kind="rank",
        prompt_version="rank.v1",
        session_id=3,
        body=body,
    )


def bought(folder: Path, caps: Caps = Caps(microusd=10_000)) -> Bought:  # noqa: B008 - frozen
    """The output of a pass that ended partial."""
    ledger = LedgerState(Amounts(3500, 225_000, 500), Amounts(), Amounts(40, 900, 1), caps)
    outcome = {"status": "partial", "reason": "3 of 500", "ledger": asdict(ledger)}
    (folder / "outcome.json").write_text(json.dumps(outcome))
    cost = Cost(3500, 0, 225_000, 500, 510, 260.0)
    return Bought(
        StageOutput("annotation", "key", folder, reused=True, seconds=0.0),
        "partial",
        "",
        cost,
        497,
        3,
    )


def _experiment(done: driver.Finished) -> str:
    return MlflowClient(done.tracking_uri).get_run(done.tracking_run_id).info.experiment_id


def _nanoseconds(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp() * 1000) * 1_000_000
