"""The beginning of a pass: equal rows once, what the store has is not asked, no bodies kept."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from alkd_ray.annotation import passes
from alkd_ray.annotation.database import FILE_NAME, Database
from alkd_ray.annotation.passes import ROWS_AT_ONCE, PendingRows
from alkd_ray.annotation.questions import RankQuestions, as_json, key_of, size_in_bytes
from alkd_ray.annotation.store import Store
from alkd_ray.llm_teachers import Endpoint
from alkd_ray.types import Usage
from tests.annotation_rows import WANTED, catalogue, requests

ENDPOINT = Endpoint("http://host/v1", "http://host/v1", "model", temperature=0.0)
COUNT = 2 * ROWS_AT_ONCE + 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Database(tmp_path / FILE_NAME) as database:
        yield Store(database)


@pytest.fixture(scope="module")
def questions() -> RankQuestions:
    """Rows of which the last ones are equal to the first ones."""
    rows = requests(COUNT)
    return RankQuestions(rows + rows[:20], catalogue(), "books", ENDPOINT)


def put_answer(store: Store, key: str, attempt: int, ranking: list[int]) -> str:
    message = {"role": "assistant", "content": json.dumps({"ranking": ranking})}
    raw = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
    store.put_answer(key, attempt, raw, usage=Usage(9, 9), cost_microusd=1, hold_id=key)
    return raw


def test_without_a_store_every_different_row_is_to_be_asked_in_order(
    questions: RankQuestions,
) -> None:
    at = passes.begin(questions, None)
    assert at.keys == [questions[index].key for index in range(len(questions))]
    assert (at.unique, len(at.pending), at.first_answers) == (COUNT, COUNT, {})
    assert [row.index for row in at.pending] == list(range(COUNT))
    for row, size in zip(at.pending, at.sizes, strict=True):
        question = questions[row.index]
        body = json.loads(row.body)
        assert row.body == as_json(question.body)
        assert row.key == at.keys[row.index] == key_of(ENDPOINT, body, row.prompt_version)
        assert row.session_id == question.session_id
        assert size.body_bytes + size.bytes_around == size_in_bytes(body, question.schema)


def test_what_the_store_has_the_last_word_on_is_not_asked(
    store: Store, questions: RankQuestions
) -> None:
    keys = [questions[index].key for index in range(COUNT)]
    whole = list(range(1, WANTED + 1))
    last = COUNT - 1
    put_answer(store, keys[0], 1, whole)
    put_answer(store, keys[last], 1, whole)
    short = {index: put_answer(store, keys[index], 1, [1, 2]) for index in (1, ROWS_AT_ONCE)}
    put_answer(store, keys[2], 1, [])
    put_answer(store, keys[2], 2, [])
    store.put_failure(keys[3], permanent=True, reason="refused")
    store.put_failure(keys[4], permanent=False, reason="nobody answered")

    at = passes.begin(questions, store)
    asked = [index for index in range(COUNT) if index not in (0, 2, 3, last)]
    assert [row.index for row in at.pending] == asked
    assert len(at.sizes) == len(asked)
    assert at.first_answers == short

    put_answer(store, keys[4], 1, whole)
    short[5] = put_answer(store, keys[5], 1, [3])
    put_answer(store, keys[1], 2, whole)
    # A deep copy is made by the same means as a pickle.
    sent_along: passes.Pass = copy.deepcopy(at)
    left, first_answers = passes.still_pending(questions, sent_along, store)
    assert [row.index for row in left] == [index for index in asked if index not in (1, 4)]
    assert first_answers == {index: raw for index, raw in short.items() if index != 1}


def test_pending_rows_travel_as_indexes_and_keys(questions: RankQuestions) -> None:
    rows = passes.begin(questions, None).pending
    assert len(pickle.dumps(rows)) < 100 * len(rows)  # a body takes thousands of bytes
    arrived: PendingRows = copy.deepcopy(rows)
    assert arrived.keys == rows.keys
    assert len(arrived) == len(rows)
    with pytest.raises(RuntimeError, match="without their questions"):
        next(iter(arrived))
    assert not PendingRows(questions, {})


def test_rows_in_doubt_come_last(store: Store, questions: RankQuestions) -> None:
    at = passes.begin(questions, store)
    in_doubt = {at.keys[index] for index in (0, 5)}
    rows, _ = passes.still_pending(questions, at, store, in_doubt)
    order = [*(index for index in range(COUNT) if index not in (0, 5)), 0, 5]
    assert [row.index for row in rows] == order
    assert [row.key for row in rows] == [at.keys[index] for index in order]
