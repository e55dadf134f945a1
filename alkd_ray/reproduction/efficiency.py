"""What annotating costs: the sessions that were picked, against all of them.

Du et al., AAAI 2025, "Efficiency", ask GPT-4-turbo-2024-04-09: "around 44 minutes and 8.6 USD" for
a subset of the sessions of Amazon-Games against "1782 minutes and 347.0 USD" for all samples. Here
both are worked out anew, from the requests that this project sends and from the published answers:

Input. The project's own prompt (current version), rendered for a sample of the sessions with a
published ranking; their histories are a quarter of an item shorter than those of all sessions, some
10 of 4,000 bytes. The candidates stand for the teacher's top 50: the items of the published
ranking, then the most popular ones, in random order. Hints are those that the config names, else as
long as plans assume. The one request that has hints written, some cents a seed, is left out, and so
is the frame that an endpoint puts around messages, some ten tokens.

Output. The published ranking as an answer in two forms: candidate ``numbers``, as the project asks
for, and ``titles`` in numbered lines. Which form the published answers had is not on record: the
recording holds item indices alone. Where several items share a title, an index other than the
first is recorded in half of the cases, so that at least nobody looked titles up in the catalogue.

Tokens. From bytes and words, with a range; see ``_tokens.py``.

Time. As long for each answer as the paper's 44 minutes for 500 sessions say, one after another, and
with as many requests in flight as the config allows.

Everything before :func:`measure` computes on texts and numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alkd_ray import sessions as windows_of
from alkd_ray import stages
from alkd_ray.annotation import pricing, worker
from alkd_ray.annotation.experience import BYTES_PER_TOKEN
from alkd_ray.annotation.pricing import Rates
from alkd_ray.config import RunConfig
from alkd_ray.errors import InputError
from alkd_ray.llm_teachers import RecordedTeacher
from alkd_ray.reproduction import _tokens
from alkd_ray.reproduction._recorded_requests import (
    BASE_URL,
    FORMS,
    MODEL,
    RequestTokens,
    recorded_requests,
)
from alkd_ray.reproduction._tokens import Range
from alkd_ray.stages import Context, Listener
from alkd_ray.types import Usage

# Listed for the model by its maker; used where the bundled price list no longer has it.
LISTED_RATES = {"input_usd_per_million": 10.0, "output_usd_per_million": 30.0}


@dataclass(frozen=True, slots=True)
class Published:
    """What the paper says of so many sessions; the number of sessions is our reading of it."""

    sessions: int
    minutes: float
    dollars: float


# Amazon-Games. See :func:`implied_sessions` for which sessions these are.
PUBLISHED_SUBSET = Published(500, 44.0, 8.6)
PUBLISHED_ALL = Published(20_091, 1782.0, 347.0)
PUBLISHED_ITEMS = 26_138
SECONDS_PER_ANSWER = 60 * PUBLISHED_SUBSET.minutes / PUBLISHED_SUBSET.sessions


@dataclass(frozen=True, slots=True)
class EfficiencyRow:
    """Annotating so many sessions.

    Attributes:
        dataset: short name.
        what: which sessions these are.
        sessions: how many.
        form: of the answers, see :data:`FORMS`.
        input_tokens: of all prompts.
        output_tokens: of all answers.
        dollars: for both.
        minutes_in_turn: one request after another.
        minutes_in_flight: as many at a time as :attr:`Efficiency.in_flight` says.
        published: the paper's figures for the same sessions; None where it has none.
    """

    dataset: str
    what: str
    sessions: int
    form: str
    input_tokens: Range
    output_tokens: Range
    dollars: Range
    minutes_in_turn: float
    minutes_in_flight: float
    published: Published | None


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The rows of one dataset, with what they rest on.

    Attributes:
        rows: numbers of sessions, ascending, crossed with the forms of answers.
        in_flight: requests at a time.
        rates: where the prices come from.
        sample: requests that were rendered.
        notes: sentences for the reader.
    """

    rows: tuple[EfficiencyRow, ...]
    in_flight: int
    rates: str
    sample: int
    notes: tuple[str, ...]


def rows_of(
    dataset: str,
    counts: Mapping[int, str],
    requests: Sequence[RequestTokens],
    rates: Rates,
    in_flight: int,
    published: Mapping[int, Published],
) -> tuple[EfficiencyRow, ...]:
    """Rows for numbers of sessions, ascending: means over a sample of requests, times sessions.

    Args:
        dataset: its short name.
        counts: number of sessions -> which sessions these are.
        requests: the sample, at least one.
        rates: the model's prices.
        in_flight: requests at a time.
        published: number of sessions -> the paper's figures.
    """
    found = []
    asked = _tokens.mean([request.input for request in requests])
    for form in FORMS:
        said = _tokens.mean([request.output[form] for request in requests])
        dollars = _tokens.mean([_dollars(request, form, rates) for request in requests])
        for sessions, what in counts.items():
            minutes = sessions * SECONDS_PER_ANSWER / 60
            found.append(
                EfficiencyRow(
                    dataset=dataset,
                    what=what,
                    sessions=sessions,
                    form=form,
                    input_tokens=asked.times(sessions),
                    output_tokens=said.times(sessions),
                    dollars=dollars.times(sessions),
                    minutes_in_turn=minutes,
                    minutes_in_flight=minutes / min(in_flight, sessions),
                    published=published.get(sessions),
                )
            )
    return tuple(sorted(found, key=lambda row: (row.sessions, FORMS.index(row.form))))


def implied_sessions() -> Range:
    """Sessions of the paper's large figures, if its small ones are for 500.

    Low and high are what the figures' rounding leaves open, in dollars and in minutes alike;
    expected is their ratio in dollars.
    """
    few, all_ = PUBLISHED_SUBSET, PUBLISHED_ALL
    bounds = [
        ((large - of_large) / (small + of_small), (large + of_large) / (small - of_small))
        for large, of_large, small, of_small in (
            (all_.dollars, 0.05, few.dollars, 0.05),
            (all_.minutes, 0.5, few.minutes, 0.5),
        )
    ]
    ratio = Range(
        max(low for low, _ in bounds),
        all_.dollars / few.dollars,
        min(high for _, high in bounds),
    )
    return ratio.times(few.sessions)


def agreement(rows: Sequence[EfficiencyRow]) -> list[str]:
    """A sentence for each row with a figure of the paper: whether it lies in our range."""
    found = []
    for row in rows:
        if row.published is None:
            continue
        paper, ours = row.published.dollars, row.dollars
        where = "below" if paper < ours.low else "above" if paper > ours.high else "within"
        found.append(
            f"The paper's {paper:.1f} USD for {row.sessions:,} sessions lie {where} the "
            f"{ours.low:,.1f} to {ours.high:,.1f} USD of answers in {row.form}."
        )
    return found


def numbers(found: Sequence[Efficiency]) -> list[list[str | float | None]]:
    """The rows of all as plain numbers, header first; None = the paper says nothing of them."""
    header: list[str | float | None] = ["dataset", "sessions", "which", "answers in"]
    ranges = ("input tokens", "output tokens", "USD")
    header += [f"{name} {end}" for name in ranges for end in ("low", "expected", "high")]
    header += ["minutes in turn", "requests in flight", "minutes in flight"]
    header += ["paper USD", "paper minutes"]
    return [header, *(_line(row, one.in_flight) for one in found for row in one.rows)]


def _line(row: EfficiencyRow, in_flight: int) -> list[str | float | None]:
    line: list[str | float | None] = [row.dataset, row.sessions, row.what, row.form]
    for one in (row.input_tokens, row.output_tokens):
        line += [round(one.low), round(one.expected), round(one.high)]
    line += [row.dollars.low, row.dollars.expected, row.dollars.high]
    line += [row.minutes_in_turn, in_flight, row.minutes_in_flight]
    paper = row.published
    return [*line, paper.dollars if paper else None, paper.minutes if paper else None]


def quantities(found: Efficiency) -> tuple[list[str], dict[str, list[str]]]:
    """For a terminal: names of the quantities, and number of sessions -> their texts.

    Ranges stand below what is expected.
    """
    names = [f"{form}: {what}" for form in FORMS for what in ("Mtokens in", "Mtokens out", "USD")]
    names += ["minutes, in turn", f"minutes, {found.in_flight} at once"]
    is_published = any(row.published for row in found.rows)
    names += ["paper's USD", "paper's minutes"] if is_published else []
    columns: dict[str, list[str]] = {}
    for sessions in dict.fromkeys(row.sessions for row in found.rows):
        rows = {row.form: row for row in found.rows if row.sessions == sessions}
        texts = []
        for row in (rows[form] for form in FORMS):
            for tokens in (row.input_tokens, row.output_tokens):
                millions = tokens.times(1e-6)
                texts.append(_shown(millions, ",.3f" if millions.expected < 10 else ",.1f"))
            texts.append(_shown(row.dollars, ",.1f"))
        one = rows[FORMS[0]]
        texts += [f"{one.minutes_in_turn:,.0f}", f"{one.minutes_in_flight:,.1f}"]
        if is_published:
            paper = one.published
            texts += [f"{paper.dollars:,.1f}", f"{paper.minutes:,.0f}"] if paper else ["", ""]
        columns[f"{sessions:,}"] = texts
    return names, columns


def _shown(value: Range, form: str) -> str:
    return f"{value.expected:{form}}\n{value.low:{form}}-{value.high:{form}}"


def _dollars(request: RequestTokens, form: str, rates: Rates) -> Range:
    """Of one request, each bound of its tokens at its price."""

    def at(prompt: float, answer: float) -> float:
        return pricing.cost_microusd(rates, Usage(round(prompt), round(answer))) / 1e6

    asked, said = request.input, request.output[form]
    return Range(
        at(asked.low, said.low), at(asked.expected, said.expected), at(asked.high, said.high)
    )


# From here on stages and files are read.


def measure(config: RunConfig, root: Path, listener: Listener) -> Efficiency:
    """Prices the annotation of a run's dataset from its recording; see the module's text.

    Args:
        config: data, recording (``llm``), prompt (``candidates``, ``hints``, ``annotation``), and
            how many sessions are selected.
        root: the run root, where the dataset is found or imported.
        listener: told of the import.

    Raises:
        InputError: the config's LLM teacher is no recording, or nothing in it can be used.
    """
    context = Context(config, root, listener)
    teacher = worker.teacher_of(config.llm)
    if not isinstance(teacher, RecordedTeacher):
        raise InputError(
            f"llm.teacher is {config.llm.teacher!r}, but costs are worked out from recorded "
            "rankings; set it to replay"
        )
    data = stages.load_dataset(stages.import_sessions(context))
    requests = recorded_requests(context, data, teacher)
    rates = current_rates()
    in_flight = worker.speed_of(config.annotation).in_flight
    train = len(windows_of.of_split(data.sessions, "train"))
    everything = len(data.sessions)
    is_published = (everything, len(data.catalogue)) == (PUBLISHED_ALL.sessions, PUBLISHED_ITEMS)
    counts = {
        PUBLISHED_SUBSET.sessions: "as many as the paper's subset",
        config.selection.budget: "selection.budget",
        train: "all training sessions",
        everything: "all sessions, test sessions among them",
    }
    counts = {sessions: what for sessions, what in counts.items() if sessions <= everything}
    published = {one.sessions: one for one in (PUBLISHED_SUBSET, PUBLISHED_ALL)}
    rows = rows_of(data.name, counts, requests, rates, in_flight, published if is_published else {})
    return Efficiency(
        rows,
        in_flight,
        rates.source,
        len(requests),
        (
            *_notes(len(requests), rates.source, config.selection.budget, train, everything),
            *agreement(rows),
        ),
    )


def current_rates() -> Rates:
    """Prices of the paper's model, from the bundled list, or as its maker listed them."""
    try:
        return pricing.rates_of(MODEL, BASE_URL)
    except InputError:
        return pricing.rates_of(MODEL, BASE_URL, LISTED_RATES)


def _notes(sample: int, source: str, budget: int, train: int, everything: int) -> tuple[str, ...]:
    implied = implied_sessions()
    few, all_ = PUBLISHED_SUBSET, PUBLISHED_ALL
    return (
        f"Tokens are estimated, for {sample:,} sessions of the recording: a token for "
        f"{BYTES_PER_TOKEN:g} bytes of the request; at least one, and at most "
        f"{_tokens.TOKENS_PER_PIECE_HIGH:g}, for each word, group of digits and run of signs.",
        f"Prices: {source}.",
        f"Minutes: {SECONDS_PER_ANSWER:.2f} seconds an answer, the paper's {few.minutes:g} minutes "
        f"for {few.sessions} sessions; a shorter answer may take less.",
        f"The paper's {all_.dollars:.1f} USD and {all_.minutes:,.0f} minutes are "
        f"{all_.dollars / few.dollars:.1f} and {all_.minutes / few.minutes:.1f} times its "
        f"{few.dollars:.1f} USD and {few.minutes:g} minutes. If those are for {few.sessions} "
        f"sessions, the others are for {implied.low:,.0f} to {implied.high:,.0f}: the "
        f"{all_.sessions:,} sessions of Amazon-Games, validation and test sessions among them, "
        "which distillation never asks about. With the 750 sessions that the paper selects there "
        "for FPMC they would be for half as many again as there are.",
        f"Here the {train:,} training sessions are {train / budget:.1f} times the {budget:,} of "
        f"selection.budget, all {everything:,} sessions {everything / budget:.1f} times.",
    )
