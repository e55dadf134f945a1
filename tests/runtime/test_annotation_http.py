"""A pass in this process against the real endpoint, which behaves or misbehaves over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from alkd_ray.annotation import passes, worker
from alkd_ray.annotation.database import Database
from alkd_ray.annotation.experience import Experience
from alkd_ray.annotation.questions import RankQuestions
from alkd_ray.annotation.store import Store
from alkd_ray.errors import BudgetError, InputError
from alkd_ray.types import AnnotationOutcome, Caps
from tests.annotation_rows import WANTED, job, requests, serving


def spent(outcome: AnnotationOutcome) -> int:
    ledger = outcome.ledger
    return ledger.settled.microusd + ledger.held.microusd + ledger.unresolved.microusd


def test_every_row_is_answered_billed_once_and_never_asked_again(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        here = job(tmp_path / "store", server.url)
        told: list[worker.Progress] = []
        first = worker.annotate(here, told.append)
        assert (first.status, first.reason) == ("complete", "")
        assert [a.session_id for a in first.annotations] == list(range(40))
        for annotation, request in zip(first.annotations, here.requests, strict=True):
            assert len(set(annotation.ranking)) == WANTED
            assert set(annotation.ranking) <= set(request.candidates)
        # The reader of titles puts the next volume first, unless noise is against it.
        firsts = [a.ranking[0] == a.session_id for a in first.annotations]
        following = [int(r.history[-1]) + 1 for r in here.requests]
        hits = sum(a.ranking[0] == f for a, f in zip(first.annotations, following, strict=True))
        assert hits > sum(firsts) + 20
        bill = server.bill()
        assert bill["requests"] == first.sent == 40
        assert bill["microusd"] == first.ledger.settled.microusd == spent(first)
        assert told[-1].done == told[-1].total == 40
        assert told[-1].ledger.settled.microusd == bill["microusd"]

        second = worker.annotate(here)
        assert second.sent == 0
        assert second.reused == 40
        assert [a.ranking.tolist() for a in second.annotations] == [
            a.ranking.tolist() for a in first.annotations
        ]
        assert server.bill() == bill


def test_equal_questions_are_paid_for_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        five = requests(5)
        twice = replace(job(tmp_path / "store", server.url), requests=five + five)
        outcome = worker.annotate(twice)
        assert len(outcome.annotations) == 10
        assert outcome.sent == server.bill()["requests"] == 5


def test_a_misbehaving_endpoint_loses_no_row_and_no_cent(tmp_path: Path) -> None:
    flags = ["--rate-limited-share", ".1", "--retry-after-seconds", ".05", "--server-error-share"]
    flags += [".05", "--drop-after-share", ".05", "--drop-before-share", ".03"]
    flags += ["--truncated-share", ".1", "--prose-share", ".1", "--repeated-share", ".1"]
    with serving(tmp_path, *flags) as server:
        outcome = worker.annotate(job(tmp_path / "store", server.url, count=120, in_flight=16))
        bill = server.bill()
    assert outcome.status == "complete"
    assert len(outcome.annotations) == 120
    lengths = [len(annotation.ranking) for annotation in outcome.annotations]
    assert lengths == [len(set(annotation.ranking)) for annotation in outcome.annotations]
    # Short twice in a row (two damaged answers) is accepted, and rare.
    assert min(lengths) >= WANTED / 5
    assert sum(length >= 0.8 * WANTED for length in lengths) > 110
    assert {repair.split(":")[0] for a in outcome.annotations for repair in a.repairs}
    # Every drop may have been billed, and is held against the cap until somebody looks.
    assert outcome.ledger.unresolved.requests > 0
    assert outcome.ledger.settled.microusd <= bill["microusd"] <= spent(outcome)
    assert outcome.ledger.held.requests == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_cap_that_bites_holds_by_the_endpoints_own_bill(tmp_path: Path, share: float) -> None:
    with serving(tmp_path, "--latency", ".02") as server:
        whole = worker.annotate(job(tmp_path / "free", server.url))
        before = server.bill()["microusd"]
        cap = int(whole.ledger.settled.microusd * share)
        capped = job(
            tmp_path / "capped", server.url, caps=Caps(microusd=cap), partial=True, in_flight=16
        )
        outcome = worker.annotate(capped)
        billed = server.bill()["microusd"] - before
        assert outcome.status == "stopped"
        assert "cap" in outcome.reason
        assert billed == outcome.ledger.settled.microusd <= cap
        dearest = _dearest(capped)
        assert cap - billed < dearest
        # With the cap raised the same pass goes on, and buys each row once.
        rest = worker.annotate(replace(capped, caps=Caps(microusd=10 * cap + 1_000_000)))
        assert rest.status == "complete"
        assert outcome.sent + rest.sent == 40


def _dearest(here: worker.AnnotationJob) -> int:
    endpoint = worker.teacher_of(here.llm).describe()
    questions = RankQuestions(here.requests, here.catalogue, here.domain, endpoint)
    plan = passes.begin(questions, None).plan(worker.rates_of(endpoint), here.caps, Experience())
    return plan.dearest.microusd


@pytest.mark.parametrize("caps", [Caps(requests=7), Caps(tokens=9_000)], ids=["requests", "tokens"])
def test_caps_on_requests_and_tokens(tmp_path: Path, caps: Caps) -> None:
    with serving(tmp_path) as server:
        outcome = worker.annotate(job(tmp_path / "store", server.url, caps=caps, partial=True))
        bill = server.bill()
    assert outcome.status == "stopped"
    assert 0 < bill["requests"] < 40
    assert bill["requests"] <= (caps.requests or 40)
    assert bill["prompt_tokens"] + bill["completion_tokens"] <= (caps.tokens or 10**9)


def test_a_pass_that_cannot_end_under_its_cap_does_not_begin(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with pytest.raises(BudgetError, match=r"raise budget\.dollars.*annotation\.partial=true"):
            worker.annotate(job(tmp_path / "store", server.url, caps=Caps(microusd=300)))
        assert server.bill()["requests"] == 0


def test_an_endpoint_that_ignores_its_limit_is_a_breach(tmp_path: Path) -> None:
    with serving(tmp_path, "--ignore-max-tokens-share", "1", "--latency", ".05") as server:
        outcome = worker.annotate(job(tmp_path / "store", server.url, in_flight=4))
        bill = server.bill()
    assert outcome.status == "breached"
    assert "where 144 were allowed" in outcome.reason
    assert bill["requests"] <= 4 + 4  # those in flight when the first answer came
    assert bill["microusd"] == outcome.ledger.settled.microusd


def test_an_exhausted_quota_stops_the_pass(tmp_path: Path) -> None:
    with serving(tmp_path, "--quota-requests", "6") as server:
        # One at a time: the quota counts answers, so requests that are on their way pass it.
        outcome = worker.annotate(job(tmp_path / "store", server.url, in_flight=1))
    assert outcome.status == "stopped"
    assert "quota" in outcome.reason
    assert len(outcome.annotations) == 6


def test_a_wrong_key_stops_the_pass_before_anything_is_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_DEMANDED_KEY", "right")
    with serving(tmp_path, "--api-key-env", "TEST_DEMANDED_KEY") as server:
        monkeypatch.setenv("TEST_GIVEN_KEY", "wrong-secret-key")
        options = {"api_key_env": "TEST_GIVEN_KEY"}
        outcome = worker.annotate(job(tmp_path / "store", server.url, options=options))
        assert outcome.status == "stopped"
        assert "401" in outcome.reason
        assert "wrong-secret-key" not in outcome.reason
        assert server.bill()["requests"] == 0
        assert spent(outcome) == 0
        monkeypatch.setenv("TEST_GIVEN_KEY", "right")
        again = worker.annotate(job(tmp_path / "store", server.url, options=options))
        assert again.status == "complete"
    for file in (tmp_path / "store").iterdir():
        assert b"wrong-secret-key" not in file.read_bytes()


def test_an_endpoint_without_json_schema_is_asked_without(tmp_path: Path) -> None:
    with serving(tmp_path, "--no-json-schema") as server:
        outcome = worker.annotate(job(tmp_path / "store", server.url))
        assert outcome.status == "complete"
        assert server.bill()["requests"] == 40


def test_unreadable_answers_are_asked_again_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--truncated-share", "1") as server:
        here = job(tmp_path / "store", server.url, count=10)
        outcome = worker.annotate(here)
        assert server.bill()["requests"] == outcome.sent
        with Database(here.books, read_only=True) as database:
            answers = Store(database).answers([a.key for a in outcome.annotations])
    assert 10 < outcome.sent <= 20
    assert {len(stored) for stored in answers.values()} <= {1, 2}
    assert any(len(stored) == 2 for stored in answers.values())


def test_asking_again_that_cannot_be_paid_keeps_no_other_row_from_being_asked(
    tmp_path: Path,
) -> None:
    with serving(tmp_path, "--truncated-share", "1") as server:
        alone = job(tmp_path / "alone", server.url, count=1)
        (row,) = worker.annotate(alone).annotations
        with Database(alone.books, read_only=True) as database:
            first, _second = Store(database).answers([row.key])[row.key]
        before = server.bill()
        # Room for the other row's question, but not for the longer one that asks this row again.
        both = job(tmp_path / "both", server.url, count=2, in_flight=1, partial=True)
        cap = first.cost_microusd + _dearest(both)
        outcome = worker.annotate(replace(both, caps=Caps(microusd=cap)))
        bill = server.bill()
    assert bill["requests"] - before["requests"] == outcome.sent == 2
    assert bill["microusd"] - before["microusd"] == spent(outcome) <= cap
    assert "of budget 'test' leaves" in outcome.reason or outcome.status == "complete"


def test_rows_fail_alone_when_nobody_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        url = server.url
    here = job(tmp_path / "store", url, count=3, tries=2)
    outcome = worker.annotate(here)
    assert outcome.status == "partial"
    assert all("no connection" in a.failure for a in outcome.annotations)
    assert spent(outcome) == 0
    with serving(tmp_path, "--port", url.split(":")[-1].removesuffix("/v1")):
        again = worker.annotate(here)
    assert again.status == "complete"
    assert again.sent == 3


def test_an_unknown_price_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    here = job(tmp_path / "store", "http://127.0.0.1:9/v1", options={"rates": None})
    with pytest.raises(InputError, match="input_usd_per_million"):
        worker.annotate(here)
