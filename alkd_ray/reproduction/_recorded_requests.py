"""Requests as they would be sent for sessions with a recorded ranking, and their answers' sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alkd_ray import hinting, plans
from alkd_ray import sessions as windows_of
from alkd_ray.annotation import parse
from alkd_ray.annotation.questions import RankQuestions, body_in_bytes
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import Endpoint, RecordedTeacher
from alkd_ray.reproduction import _tokens
from alkd_ray.reproduction._tokens import Range
from alkd_ray.seeds import numpy_stream
from alkd_ray.stages import Context
from alkd_ray.types import Catalogue, Dataset, IntArray, RankRequest

MODEL = "gpt-4-turbo-2024-04-09"
BASE_URL = "https://api.openai.com/v1"
SAMPLE = 500
FORMS = ("numbers", "titles")


@dataclass(frozen=True, slots=True)
class RequestTokens:
    """Tokens of one request and its answer.

    Attributes:
        input: of the prompt.
        output: form of the answer (see :data:`FORMS`) -> of the answer.
    """

    input: Range
    output: Mapping[str, Range]


def recorded_requests(
    context: Context, data: Dataset, teacher: RecordedTeacher
) -> list[RequestTokens]:
    """Requests for up to 500 sessions, drawn from those of the recording that can be used.

    Args:
        context: the run; its first seed draws.
        data: the sessions.
        teacher: the recording.

    Raises:
        InputError: nothing in the recording can be used.
    """
    config = context.config
    wanted, size = config.annotation.wanted, config.candidates.size
    rng = numpy_stream(config.seeds[0], "efficiency sample")
    hints_text = hinting.named_hints(context)["text"]
    if config.hints.enabled and not hints_text:
        hints_text = plans.ASSUMED_HINTS
    popular = _popular(data)
    ids = teacher.recorded_ids()
    ids = ids[windows_of.rows_of_ids(data.sessions, ids) >= 0]
    rankings: list[IntArray] = []
    requests: list[RankRequest] = []
    for session_id in rng.permutation(ids):
        if len(requests) == SAMPLE:
            break
        recorded = teacher.ranking(int(session_id))
        assert recorded is not None
        read = parse.parse_recorded(recorded, len(data.catalogue), wanted)
        if read.failure:
            continue
        row = int(windows_of.rows_of_ids(data.sessions, np.array([session_id]))[0])
        history = data.sessions.items_of(row)
        others = popular[~np.isin(popular, np.concatenate([read.ranking, history]))]
        candidates = np.concatenate([read.ranking, others])[:size]
        requests.append(
            RankRequest(
                session_id=int(session_id),
                history=history[-config.data.window :],
                candidates=rng.permutation(candidates),
                wanted=min(wanted, len(candidates)),
                hints=hints_text,
            )
        )
        rankings.append(read.ranking)
    if not requests:
        raise InputError(
            "llm.options.path: the recording has no ranking of any session of the dataset that "
            "can be used; do the two belong together?"
        )
    return _sizes(requests, rankings, data.catalogue, data.name)


def _sizes(
    requests: Sequence[RankRequest],
    rankings: Sequence[IntArray],
    catalogue: Catalogue,
    domain: str,
) -> list[RequestTokens]:
    """Each request as it would be sent, and its recorded ranking in both forms of an answer."""
    questions = RankQuestions(requests, catalogue, domain, Endpoint("openai", BASE_URL, MODEL))
    found = []
    for number, (request, ranking) in enumerate(zip(requests, rankings, strict=True)):
        body = questions[number].body
        text = "\n".join(message["content"] for message in body["messages"])
        place = {int(item): at for at, item in enumerate(request.candidates, 1)}
        prompt = _tokens.of_prompt(text, body_in_bytes(body))
        numbers = _tokens.of_numbers([place[int(item)] for item in ranking])
        titles = _tokens.of_titles([str(catalogue.titles[item]) for item in ranking], prompt)
        found.append(RequestTokens(prompt, {"numbers": numbers, "titles": titles}))
    return found


def _popular(data: Dataset) -> IntArray:
    """All items, those that occur most in whole training sessions first."""
    train = windows_of.of_split(data.sessions, "train")
    items = np.concatenate([train.flat_items, train.targets])
    return np.argsort(-np.bincount(items, minlength=len(data.catalogue)), kind="stable")
