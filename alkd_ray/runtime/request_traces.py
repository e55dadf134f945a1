"""The requests behind a run's rankings as MLflow traces, one trace an answer.

They are read from the books after the pass, so tracing takes nothing of the rate of asking. They
are written many to a call, by explicit ids: MLflow's tracer, which is one for the whole process,
has no part in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alkd_ray.annotation.database import Database
from alkd_ray.annotation.ledger import HoldEntry, Ledger
from alkd_ray.annotation.pricing import LongPromptRates, Rates, cost_microusd
from alkd_ray.annotation.store import Store, StoredAnswer, StoredRequest
from alkd_ray.errors import AlkdError
from alkd_ray.runtime._mlflow_connection import connect, without_password
from alkd_ray.types import Usage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Span
    from mlflow.tracing.client import TracingClient

# MLflow links no more traces in one call, and many proxies let no more than a megabyte through.
TRACES_PER_CALL = 100
CHARACTERS_PER_CALL = 512 * 1024
KEYS_PER_READ = 100
# Deeper JSON is kept as text: the server would refuse it.
DEEPEST_JSON = 20
LARGEST_INTEGER = 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Asked:
    """An answer, its question, and the hold that paid for it."""

    request: StoredRequest
    answer: StoredAnswer
    hold: HoldEntry
    rates: tuple[Rates, ...]


def log_request_traces(
    *, uri: str, experiment_id: str, run_id: str, books: Path | str, keys: Iterable[str]
) -> int:
    """Logs the answers to some requests as traces and links them to a run.

    A trace's id is made from the experiment and the answer, so an answer has one trace in an
    experiment, however many runs share it and however often they are logged; each of those runs is
    linked to it. A logging that was interrupted is completed by the next one.

    A span has MLflow's own attributes for the chat view, tokens, cost, model and session. Requests
    without an answer, and recorded rankings, which nobody was asked for, have no trace.

    Args:
        uri: MLflow's store; a server needs to be of version 3.4 or later.
        experiment_id: the experiment of the run.
        run_id: the MLflow run whose list of traces shows them.
        books: where store and ledger are, a file or a server's URL; they are only read.
        keys: the requests' keys.

    Returns:
        How many answers are linked to the run.

    Raises:
        AlkdError: MLflow cannot be reached or refuses, or the books cannot be read; what was
            logged until then stays.
    """
    with connect(uri) as client, Database(books, read_only=True) as database:
        from mlflow.tracing.client import TracingClient

        tracing = TracingClient(uri)
        linked = 0
        try:
            for part in _parts(_answers(database, keys), experiment_id):
                _log(client, tracing, experiment_id, run_id, part)
                linked += len(part)
        except NotImplementedError as error:
            raise AlkdError(
                f"MLflow at {without_password(uri)} takes no spans: {error}; traces need an SQLite "
                "file, or a server of version 3.4 or later"
            ) from error
        return linked


def _log(
    client: MlflowClient,
    tracing: TracingClient,
    experiment_id: str,
    run_id: str,
    part: Mapping[str, _Asked],
) -> None:
    """Writes the traces that are not there, in one transaction, and links all of them."""
    there = {info.trace_id for info in tracing.store.batch_get_trace_infos(list(part))}
    spans = [_span(trace_id, asked) for trace_id, asked in part.items() if trace_id not in there]
    if spans:
        tracing.log_spans(experiment_id, spans)
    client.link_traces_to_run(list(part), run_id)


def _parts(answers: Iterable[_Asked], experiment_id: str) -> Iterator[dict[str, _Asked]]:
    """Trace id -> answer, as many as fit in one call."""
    part: dict[str, _Asked] = {}
    size = 0
    for asked in answers:
        more = len(asked.request.body) + len(asked.answer.raw)
        if part and (len(part) == TRACES_PER_CALL or size + more > CHARACTERS_PER_CALL):
            yield part
            part, size = {}, 0
        part[_trace_id(experiment_id, asked.answer)] = asked
        size += more
    if part:
        yield part


def _answers(database: Database, keys: Iterable[str]) -> Iterator[_Asked]:
    store, ledger = Store(database), Ledger(database)
    noted: dict[tuple[str, str], tuple[Rates, ...]] = {}
    left = iter(dict.fromkeys(keys))
    while chunk := list(islice(left, KEYS_PER_READ)):
        requests, answers = store.requests(chunk), store.answers(chunk)
        for key in chunk:
            for answer in answers.get(key, []):
                if not answer.hold_id:  # recorded, not asked for
                    continue
                hold = ledger.entry(answer.hold_id)
                which = (hold.budget, requests[key].model)
                if which not in noted:
                    noted[which] = _noted_rates(ledger, *which)
                yield _Asked(requests[key], answer, hold, noted[which])


def _noted_rates(ledger: Ledger, budget: str, model: str) -> tuple[Rates, ...]:
    found = []
    for noted in ledger.noted_rates(budget):
        if noted.model == model:
            values = json.loads(noted.rates)
            steps = tuple(LongPromptRates(**step) for step in values.pop("long_prompts"))
            found.append(Rates(**values, long_prompts=steps))
    return tuple(found)


def _trace_id(experiment_id: str, answer: StoredAnswer) -> str:
    """MLflow's form of a trace id, ``tr-`` and 32 hex digits.

    The hold is part of it: two run roots may have got different answers to the same request.
    """
    named = json.dumps([experiment_id, answer.key, answer.attempt, answer.hold_id])
    return "tr-" + hashlib.sha256(named.encode()).hexdigest()[:32]


def _span(trace_id: str, asked: _Asked) -> Span:
    """The only span of a trace, from the hold to its settlement."""
    from mlflow import entities

    name = asked.request.kind
    number = bytes.fromhex(trace_id.removeprefix("tr-"))
    attributes = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": entities.SpanType.CHAT_MODEL,
        "mlflow.spanInputs": _shown(asked.request.body),
        "mlflow.spanOutputs": _shown(asked.answer.raw),
        "mlflow.message.format": "openai",
        "mlflow.llm.model": asked.request.model,
        "mlflow.llm.cost": _cost(asked),
        # These two become the trace's name and one of its tags.
        "mlflow.traceTag.mlflow.traceName": name,
        "mlflow.traceTag.alkd.request_key": asked.request.key,
        "alkd.attempt": asked.answer.attempt,
        "alkd.asked_again": asked.hold.attempt > 1,
        "alkd.cost_microusd": asked.answer.cost_microusd,
        "alkd.endpoint": without_password(asked.request.endpoint),
        "alkd.finish_reason": _text(asked.answer.finish_reason),
        "alkd.hold_id": asked.hold.hold_id,
        "alkd.owner": asked.hold.owner,
        "alkd.prompt_version": asked.request.prompt_version,
    }
    if asked.answer.usage is not None:
        attributes["mlflow.chat.tokenUsage"] = _tokens(asked.answer.usage)
    if asked.request.session_id >= 0:
        attributes["session.id"] = str(asked.request.session_id)
    if asked.hold.batch:
        attributes["alkd.batch"] = asked.hold.batch
    return entities.Span.from_dict(
        {
            "trace_id": base64.b64encode(number).decode(),
            "span_id": base64.b64encode(number[:8]).decode(),
            "parent_span_id": None,
            "name": name,
            "start_time_unix_nano": _nanoseconds(asked.hold.held_at),
            "end_time_unix_nano": _nanoseconds(asked.hold.ended_at or asked.answer.received_at),
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            # MLflow keeps each value as JSON text.
            "attributes": {
                key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()
            },
            "events": [],
        }
    )


def _tokens(usage: Usage) -> dict[str, int]:
    found = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens:
        found["cache_read_input_tokens"] = usage.cached_tokens
    return found


def _cost(asked: _Asked) -> dict[str, float]:
    """What was settled, in dollars; in parts where the rates that it was settled at are known."""
    total, usage = asked.answer.cost_microusd, asked.answer.usage
    if usage is not None:
        for rates in asked.rates:
            if cost_microusd(rates, usage) == total:
                output = _output_microusd(rates, usage)
                return {
                    "input_cost": (total - output) / 1e6,
                    "output_cost": output / 1e6,
                    "total_cost": total / 1e6,
                }
    return {"total_cost": total / 1e6}


def _output_microusd(rates: Rates, usage: Usage) -> int:
    """The completion's share; the prompt counts, since its length may decide the rates."""
    prompt = Usage(usage.prompt_tokens, 0, usage.cached_tokens)
    return cost_microusd(rates, usage) - cost_microusd(rates, prompt)


def _shown(text: str) -> Any:
    """A body as MLflow shows it: its JSON, or ``{"raw": text}`` where that could do harm.

    Never a bare string: MLflow would read JSON that stands in one.
    """
    try:
        found = json.loads(text)
        if isinstance(found, dict | list):
            return _plain(found, DEEPEST_JSON)
    except (ValueError, RecursionError):
        pass
    return {"raw": _text(text)}


def _plain(value: Any, deepest: int) -> Any:
    """``value`` with strings that every store takes.

    Raises:
        ValueError: it is too deep, or has a number that the stores have no form for.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | dict) and not deepest:
        raise ValueError(f"deeper than {DEEPEST_JSON}")
    if isinstance(value, dict):
        return {_text(key): _plain(inner, deepest - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, deepest - 1) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no JSON")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError("more than 64 bits")
    return value


def _text(text: str) -> str:
    """``text`` with what UTF-8 or a database has no form for written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\u0000")


def _nanoseconds(instant: str) -> int:
    """Since 1970, of an instant in ISO 8601."""
    return (datetime.fromisoformat(instant) - EPOCH) // timedelta(microseconds=1) * 1000
