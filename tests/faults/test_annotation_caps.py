"""The cap by the endpoint's own bill: eight actors, 64 requests in flight each, and faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alkd_ray.annotation import worker
from alkd_ray.annotation.entries import caps_in_units, in_units
from alkd_ray.annotation.pricing import usd
from alkd_ray.types import Amounts, AnnotationOutcome, Caps
from tests.annotation_rows import WANTED, job, serving
from tests.e2e.conftest import TINY, CommandLine
from tests.faults._accounts import bill_hashes, books_of, times_billed, until, worst_left

COUNT, ACTORS, IN_FLIGHT = 160, 8, 64
TIMEOUT_SECONDS, SLOW_SECONDS = 3.0, 5.0
FAULTS = {
    "--latency": 0.05,
    "--jitter": 0.1,
    "--rate-limited-share": 0.05,
    "--retry-after-seconds": 0.1,
    "--server-error-share": 0.02,
    "--drop-after-share": 0.01,
    "--truncated-share": 0.03,
    "--slow-share": 0.01,
    "--slow-seconds": SLOW_SECONDS,
}
SHARES = (0.1, 0.5, 0.95)
UNITS = ("dollars",) * 30 + ("tokens",) * 9 + ("requests",) * 6 + ("all",) * 5
IN_DEFAULT_RUN = {1, 32}


@dataclass(frozen=True)
class Run:
    """One of the fifty.

    Attributes:
        seed: of the endpoint's faults.
        unit: what the cap is on.
        share: the cap, of what an undisturbed pass over all rows costs.
    """

    seed: int
    unit: str
    share: float

    @property
    def gives_up_on_slow(self) -> bool:
        """Slow answers come after the client's patience: billed, and never received."""
        return self.seed % 2 == 1

    def caps(self, whole: Amounts) -> Caps:
        values = dict(zip(("microusd", "tokens", "requests"), in_units(whole), strict=True))
        wanted = {"dollars": "microusd"}.get(self.unit, self.unit)
        return Caps(
            **{
                name: int(value * self.share)
                for name, value in values.items()
                if wanted in (name, "all")
            }
        )


RUNS = [Run(seed, unit, SHARES[seed % 3]) for seed, unit in enumerate(UNITS)]


@pytest.fixture(scope="module", autouse=True)
def own_ray() -> Iterator[None]:
    from alkd_ray.runtime import cluster

    cluster.ensure_ray(num_cpus=2)
    yield
    cluster.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Amounts:
    """What all rows cost at an endpoint that behaves."""
    folder = tmp_path_factory.mktemp("whole")
    with serving(folder) as server:
        outcome = worker.annotate(job(folder / "store", server.url, count=COUNT))
    assert outcome.status == "complete"
    return outcome.ledger.settled


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(
            run,
            marks=() if run.seed in IN_DEFAULT_RUN else pytest.mark.slow,
            id=f"{run.seed:02}-{run.unit}-{run.share:.0%}",
        )
        for run in RUNS
    ],
)
def test_the_cap_holds_by_the_endpoints_bill_and_is_used_up(
    tmp_path: Path, whole: Amounts, run: Run
) -> None:
    from alkd_ray.runtime import annotators

    flags = [word for name, value in FAULTS.items() for word in (name, str(value))]
    options = {"timeout_seconds": TIMEOUT_SECONDS} if run.gives_up_on_slow else {}
    caps = run.caps(whole)
    with serving(tmp_path, "--seed", str(run.seed), *flags) as server:
        here = job(
            tmp_path / "store",
            server.url,
            count=COUNT,
            caps=caps,
            options=options,
            partial=True,
            actors=ACTORS,
            in_flight=IN_FLIGHT,
        )
        outcome = annotators.annotate(here)
        books = books_of(here)
        counted = books.state.settled.requests + books.state.unresolved.requests
        # Answers that nobody waits for any more are generated, and billed, after the pass.
        until(lambda: server.bill()["requests"] >= counted, 2 * SLOW_SECONDS)
        bill = server.bill()
        billed = times_billed(server)
    billed_in_all = Amounts(
        bill["microusd"], bill["prompt_tokens"] + bill["completion_tokens"], bill["requests"]
    )
    settled, unresolved = books.state.settled, books.state.unresolved
    print(f"{run}: {caps} billed {billed_in_all} {settled=} {unresolved=} {outcome.reason}")

    # Never above the cap, by the endpoint's own account.
    for cap, used in zip(caps_in_units(caps), in_units(billed_in_all), strict=True):
        assert cap is None or used <= cap
    # The books and the bill differ by the lost answers, and by them alone.
    for spent, cost, most in zip(
        in_units(settled), in_units(billed_in_all), in_units(settled + unresolved), strict=True
    ):
        assert spent <= cost <= most
    assert books.state == outcome.ledger
    assert books.state.held == Amounts()
    assert books.is_sound
    if not run.gives_up_on_slow:
        assert billed_in_all.requests == counted
    # Nothing is asked twice but what was lost.
    first_requests = bill_hashes(here)
    lost = {first_requests[name] for name, times in billed.items() if times > 1}
    assert lost <= {entry.key for entry in books.ever_unresolved}

    _check_used_up(outcome, caps, settled + unresolved, worst_left(here))
    _check_rankings(outcome, here)


def _check_used_up(
    outcome: AnnotationOutcome, caps: Caps, spent: Amounts, worst: list[Amounts]
) -> None:
    """Some cap leaves less than a request may cost, and the reason names that cap."""
    assert outcome.status == "stopped"
    shown = (usd, "{:,} tokens".format, "{:,} requests".format)
    units = zip(
        caps_in_units(caps),
        in_units(spent),
        zip(*map(in_units, worst), strict=True),
        shown,
        strict=True,
    )
    used_up = [
        outcome.reason.startswith(f"the cap of {show(cap)} of budget 'test' leaves ")
        for cap, used, asked, show in units
        if cap is not None and 0 <= cap - used < max(asked)
    ]
    assert any(used_up), outcome.reason


def _check_rankings(outcome: AnnotationOutcome, here: worker.AnnotationJob) -> None:
    by_session = {request.session_id: set(request.candidates) for request in here.requests}
    assert 0 < len(outcome.annotations) < COUNT
    for annotation in outcome.annotations:
        if annotation.failure:
            assert len(annotation.ranking) == 0
            continue
        ranking = annotation.ranking.tolist()
        assert 0 < len(ranking) <= WANTED
        assert len(set(ranking)) == len(ranking)
        assert set(ranking) <= by_session[annotation.session_id]


DEAR_OUTPUT = {"input_usd_per_million": 0, "output_usd_per_million": 10}
BREACHES = {
    # Prompts are free, so a too long answer costs more than was held: a breach in the ledger.
    "above-the-hold": DEAR_OUTPUT,
    # The hold counts the prompt's bytes as tokens, so a too long answer still fits into it.
    "within-the-hold": {"input_usd_per_million": 0.15, "output_usd_per_million": 0.6},
}


@pytest.mark.parametrize(
    ("share", "kind"),
    [
        (1.0, "above-the-hold"),
        (0.1, "within-the-hold"),
        pytest.param(0.1, "above-the-hold", marks=pytest.mark.slow),
        pytest.param(1.0, "within-the-hold", marks=pytest.mark.slow),
    ],
)
def test_an_ignored_output_limit_ends_admission_at_once(
    tmp_path: Path, share: float, kind: str
) -> None:
    from alkd_ray.runtime import annotators

    actors, in_flight = 4, 8
    rates = BREACHES[kind]
    flags: list[str] = ["--ignore-max-tokens-share", str(share), "--latency", ".05", "--jitter"]
    flags += [".2", "--input-usd-per-million", str(rates["input_usd_per_million"])]
    flags += ["--output-usd-per-million", str(rates["output_usd_per_million"])]
    with serving(tmp_path, *flags) as server:
        options: dict[str, Any] = {"rates": rates}
        here = job(
            tmp_path / "store",
            server.url,
            count=COUNT,
            options=options,
            actors=actors,
            in_flight=in_flight,
        )
        outcome = annotators.annotate(here)
        bill = server.bill()
        again = annotators.annotate(here) if kind == "above-the-hold" else None
        bill_again = server.bill()
    books = books_of(here)
    assert outcome.status == "breached"
    allowed = worker.rank_questions(here, worker.teacher_of(here.llm).describe())[0]
    too_long = {
        answer.hold_id
        for stored in books.answers.values()
        for answer in stored
        if answer.usage and answer.usage.completion_tokens > allowed.max_output_tokens
    }
    ended = {entry.hold_id: entry.ended_at for entry in books.entries}
    noticed_at = min(ended[hold_id] for hold_id in too_long)
    assert all(entry.held_at <= noticed_at for entry in books.entries)
    in_flight_then = {entry.hold_id for entry in books.entries if entry.ended_at >= noticed_at}
    assert too_long <= in_flight_then
    assert len(in_flight_then) <= actors * in_flight
    assert bill["requests"] == len(books.entries) < COUNT
    assert bill["microusd"] == books.state.settled.microusd
    assert books.state.held == books.state.unresolved == Amounts()
    assert books.is_sound
    overshoot = sum(entry.overshoot.microusd for entry in books.entries)
    assert books.state.breached_microusd == overshoot
    if again is None:
        assert overshoot == 0
        assert "tokens where 144 were allowed" in outcome.reason
        return
    assert overshoot > 0
    assert usd(overshoot) in again.reason
    assert "billed more than was held" in outcome.reason
    # The breach outlives the pass: until somebody accepts it the same command sends nothing.
    assert (again.status, again.sent) == ("breached", 0)
    assert bill_again == bill


@pytest.mark.parametrize("share", [1.0, pytest.param(0.1, marks=pytest.mark.slow)])
def test_the_command_line_ends_with_five_after_a_breach(tmp_path: Path, share: float) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    alkd = CommandLine(tmp_path / "home", config)
    words = ["annotation.actors=2", "hints.enabled=false", "difficulty.engine=local"]
    # What the models are worth plays no part here.
    words += ["teacher.training.max_steps=5", "student.training.max_steps=5"]
    words += [
        "llm.teacher=simulated",
        f"llm.options={{ignore_max_tokens_share: {share}, latency_seconds: 0.1, "
        "input_usd_per_million: 0, output_usd_per_million: 10}",
    ]
    done = alkd("annotate", "run", str(config), *words, status=5)
    said = " ".join((done.stdout + done.stderr).split())
    assert "breached" in said
    assert "the endpoint billed more than was held" in said
    (budget,) = json.loads(alkd("ledger", "show", "tiny", "--json").stdout)["budgets"]
    assert budget["breached"]["microusd"] > 0
    assert f"{usd(budget['breached']['microusd'])} above it" in said
