"""What tokens cost, in integers, so that no rounding ever favours the spender.

Rates are pico-dollars per token (1 USD per million tokens = 10^6 pico-dollars per token), costs
are micro-dollars, rounded up. Prices come from the snapshot bundled with ``genai-prices``, without
touching the network, or from the config. A price that is not known is an error, never 0.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from alkd_ray.errors import InputError
from alkd_ray.types import Amounts, Usage

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice

PICO_PER_MICRO = 1_000_000
PICO_PER_TOKEN_OF_USD_PER_MILLION = 1_000_000

REQUIRED = ("input_usd_per_million", "output_usd_per_million")
OPTIONAL = ("cached_input_usd_per_million",)
BATCH = ("batch_input_usd_per_million", "batch_output_usd_per_million")

# A prompt token that was not read from the cache may also have been written to it, and the usage
# block does not say which: the dearer of the two rates counts. Reasoning is output.
INPUT_PRICES = ("input_mtok", "cache_write_mtok")
CACHED_PRICES = ("cache_read_mtok",)
OUTPUT_PRICES = ("output_mtok", "output_reasoning_mtok", "output_citation_mtok")
# Charged for every text request besides, or instead of, its tokens.
UNKNOWN_TO_US = ("requests_kcount", "input_text_messages_kcount", "input_mchars")

# Prices by time of day recur within one day; two days ahead also see a price change tonight.
DAYS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class LongPromptRates:
    """The rates of a whole request whose prompt has more than ``above_prompt_tokens`` tokens."""

    above_prompt_tokens: int
    input: int
    cached_input: int
    output: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of one model at one endpoint, in integer pico-dollars per token.

    Attributes:
        input: a prompt token that was not read from the cache.
        cached_input: a prompt token read from the cache.
        output: a completion token.
        source: where they come from, with the version; stored with the run.
        long_prompts: rates of longer prompts, in rising order; crossing a threshold changes the
            price of all tokens of the request, not only of those above it.
    """

    input: int
    cached_input: int
    output: int
    source: str
    long_prompts: tuple[LongPromptRates, ...] = ()

    def __post_init__(self) -> None:
        if min(self.input, self.cached_input, self.output) < 0:
            raise ValueError(f"rates are not negative: {self}")


def rates_of(
    model: str,
    base_url: str,
    given: Mapping[str, float] | None = None,
    *,
    service_tier: str = "",
    in_batches: bool = False,
) -> Rates:
    """The rates of ``model`` at ``base_url``.

    From the config where ``given``, else from the snapshot bundled with ``genai-prices``. There,
    a price that depends on the time of day, or changes within two days, counts at its dearest.

    Args:
        model: the model's name as sent to the endpoint.
        base_url: the endpoint; "" looks the model up by its name alone. A known model at an
            unknown address (a proxy, a local server) has no known price.
        given: ``input_usd_per_million``, ``output_usd_per_million`` and, if cached prompt tokens
            have a rate of their own, ``cached_input_usd_per_million``. 0 must be written.
            ``batch_input_usd_per_million`` and ``batch_output_usd_per_million`` are those of
            batches, cached or not; without them batches count at the other rates.
        service_tier: the request's ``service_tier``, where one is asked for.
        in_batches: the rates of requests sent in batches. A model that is listed without such
            rates counts at its full price, which bounds them.

    Raises:
        InputError: no known price; the message says how to give rates.
    """
    if given is not None:
        return _given(given, model, in_batches)
    return _listed(model, base_url, service_tier, in_batches)


def worst_case(rates: Rates, body_bytes: int, max_output_tokens: int) -> Amounts:
    """The most that one request can cost if the endpoint keeps to its output limit.

    A token is at least one byte of UTF-8, so the bytes of the request's body bound its prompt
    tokens from above (the JSON around the messages outweighs a chat template's own tokens). They
    are priced at the dearest input rate, cached or not, of any prompt length up to that bound.

    Args:
        rates: the model's rates.
        body_bytes: size of the JSON body as sent.
        max_output_tokens: the request's limit on completion tokens.
    """
    if body_bytes < 0 or max_output_tokens < 0:
        raise ValueError(f"negative size: {body_bytes} bytes, {max_output_tokens} tokens")
    steps = [_rates_at(rates, 0)]
    steps += [step for step in rates.long_prompts if step.above_prompt_tokens < body_bytes]
    prompt = max(max(step.input, step.cached_input) for step in steps)
    output = max(step.output for step in steps)
    return Amounts(
        microusd=_microusd(body_bytes * prompt + max_output_tokens * output),
        tokens=body_bytes + max_output_tokens,
        requests=1,
    )


def cost_microusd(rates: Rates, usage: Usage) -> int:
    """What an answer cost by its usage block, rounded up to a micro-dollar.

    Cached tokens count at their own rate, and are never more than the prompt's tokens, whatever
    the endpoint reports: the rest of the prompt is never negative.

    Raises:
        ValueError: a negative number of tokens, which no endpoint can have billed.
    """
    if min(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) < 0:
        raise ValueError(f"negative tokens in {usage}")
    step = _rates_at(rates, usage.prompt_tokens)
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    return _microusd(
        (usage.prompt_tokens - cached) * step.input
        + cached * step.cached_input
        + usage.completion_tokens * step.output
    )


def expected(rates: Rates, prompt_tokens: int, completion_tokens: int) -> Amounts:
    """What a request of these sizes costs when nothing is cached, for plans."""
    usage = Usage(prompt_tokens, completion_tokens)
    return Amounts(cost_microusd(rates, usage), usage.total_tokens, 1)


def usd(microusd: int) -> str:
    """An amount for people, exact: ``1,234.50 USD``, ``0.000123 USD``."""
    sign = "-" if microusd < 0 else ""
    whole, fraction = divmod(abs(microusd), 1_000_000)
    digits = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole:,}.{digits} USD"


def _rates_at(rates: Rates, prompt_tokens: int) -> LongPromptRates:
    found = LongPromptRates(0, rates.input, rates.cached_input, rates.output)
    for step in rates.long_prompts:
        if prompt_tokens > step.above_prompt_tokens:
            found = step
    return found


def _microusd(pico: int) -> int:
    return -(-pico // PICO_PER_MICRO)


def _pico(usd_per_million: Decimal) -> int:
    exact = usd_per_million * PICO_PER_TOKEN_OF_USD_PER_MILLION
    return int(exact.to_integral_value(ROUND_CEILING))


def _given(given: Mapping[str, Any], model: str, in_batches: bool) -> Rates:
    known = REQUIRED + OPTIONAL + BATCH
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(
            f"rates of model {model!r}: unknown field {unknown[0]!r}; known: {', '.join(known)}"
        )
    missing = [name for name in REQUIRED if given.get(name) is None]
    if missing:
        raise InputError(
            f"rates of model {model!r}: {missing[0]} is missing; write 0 if it is free"
        )
    values = {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"rates of model {model!r}: {name} is {value!r}, not a number")
        if not math.isfinite(value) or value < 0:
            raise InputError(f"rates of model {model!r}: {name} is {value}, must be 0 or more")
    # repr gives the shortest decimal that reads back as the float: what the user wrote.
    pico = {name: _pico(Decimal(repr(value))) for name, value in values.items()}
    written = ", ".join(f"{name} {values[name]}" for name in known if name in values)
    prompt, output = pico["input_usd_per_million"], pico["output_usd_per_million"]
    cached = pico.get("cached_input_usd_per_million", prompt)
    if in_batches:
        in_a_batch = pico.get("batch_input_usd_per_million", max(prompt, cached))
        return Rates(
            input=in_a_batch,
            cached_input=in_a_batch,
            output=pico.get("batch_output_usd_per_million", output),
            source=f"config: {written}, in batches",
        )
    return Rates(
        input=prompt,
        cached_input=cached,
        output=output,
        source=f"config: {written}",
    )


@cache
def _snapshot() -> DataSnapshot:
    """The bundled prices themselves, even where other code of the process fetched newer ones."""
    from genai_prices.data_snapshot import DataSnapshot

    # By name: a type checker would read the whole price list, which takes it minutes.
    providers = importlib.import_module("genai_prices.data").providers
    return DataSnapshot(providers=providers, from_auto_update=False)


def _listed(model: str, base_url: str, service_tier: str, in_batches: bool) -> Rates:
    import genai_prices

    version = f"genai-prices {genai_prices.__version__}"
    where = f"model {model!r} at {base_url or 'its default endpoint'}"
    how = (
        "give its rates: {input_usd_per_million: ..., output_usd_per_million: ...} "
        "(0 must be written)"
    )
    try:
        provider, found = _snapshot().find_provider_model(model, None, None, base_url or None)
    except LookupError as error:
        raise InputError(f"{where} has no known price in {version}; {how}") from error
    context: dict[str, str] = {"service_tier": service_tier} if service_tier else {}
    if context and not _has_variant(found, context):
        raise InputError(
            f"{where} has no known price for service tier {service_tier!r} in {version}; {how}"
        )
    batch: dict[str, str] = {"processing": "batch"}
    is_batch_priced = in_batches and _has_variant(found, batch)
    prices = _prices_ahead(found, {**context, **batch} if is_batch_priced else context)
    for price in prices:
        listed = {name for name, value in vars(price).items() if value is not None}
        if not {"input_mtok", "output_mtok"} <= listed or listed & set(UNKNOWN_TO_US):
            raise InputError(f"{where} is not priced by tokens alone in {version}; {how}")
    thresholds = sorted({start for price in prices for start in _thresholds(price)})
    base, *longer = (_dearest(prices, start) for start in [0, *thresholds])
    if base.input == base.output == 0:
        raise InputError(f"{where} is listed as free in {version}, which is not certain; {how}")
    tier = f", service tier {service_tier}" if service_tier else ""
    tier += ", in batches" if is_batch_priced else ""
    return Rates(
        input=base.input,
        cached_input=base.cached_input,
        output=base.output,
        source=f"{version}: {provider.id}/{found.id}{tier}",
        long_prompts=tuple(longer),
    )


def _has_variant(model: ModelInfo, when: dict[str, str]) -> bool:
    return any(variant.when == when for variant in model.price_variants or ())


def _prices_ahead(model: ModelInfo, context: Mapping[str, str]) -> list[ModelPrice]:
    """Every set of prices in force at some instant from now on, two days ahead.

    Prices change only where a constraint begins or ends, so those instants are enough.
    """
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

    start = datetime.now(UTC)
    days = [start.date() + timedelta(days=ahead) for ahead in range(DAYS_AHEAD)]
    instants = [start]
    conditions = [] if not isinstance(model.prices, list) else model.prices
    constraints = [
        part.constraint for part in (*conditions, *(model.price_variants or ())) if part.constraint
    ]
    for constraint in constraints:
        if isinstance(constraint, TimeOfDateConstraint):
            for day in days:
                for at in (constraint.start_time, constraint.end_time):
                    moment = datetime.combine(day, at)
                    instants.append(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        elif isinstance(constraint, StartDateConstraint) and constraint.start_date in days:
            instants.append(_midnight(constraint.start_date))
    return [model.get_prices(instant, context) for instant in instants]


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _thresholds(price: ModelPrice) -> set[int]:
    """Prompt lengths at which some price of a request changes."""
    from genai_prices.types import TieredPrices

    found: set[int] = set()
    for name in (*INPUT_PRICES, *CACHED_PRICES, *OUTPUT_PRICES):
        value: Any = getattr(price, name, None)
        if isinstance(value, TieredPrices):
            found.update(tier.start for tier in value.tiers)
    return found


def _dearest(prices: list[ModelPrice], above: int) -> LongPromptRates:
    """The dearest of ``prices`` for prompts of just over ``above`` tokens, kind by kind."""

    def dearest(names: tuple[str, ...]) -> int:
        values = (_at(getattr(price, name, None), above) for price in prices for name in names)
        return max((_pico(value) for value in values if value is not None), default=-1)

    uncached, cached = dearest(INPUT_PRICES), dearest(CACHED_PRICES)
    # Where the cache has no rate of its own, its tokens are billed as any other.
    if any(getattr(price, name, None) is None for price in prices for name in CACHED_PRICES):
        cached = max(cached, uncached)
    return LongPromptRates(above, uncached, cached, dearest(OUTPUT_PRICES))


def _at(value: Any, above: int) -> Decimal | None:
    """A price for prompts of just over ``above`` tokens; the tiers are sorted by their start."""
    from genai_prices.types import TieredPrices

    if not isinstance(value, TieredPrices):
        return value
    found = value.base
    for tier in value.tiers:
        if above >= tier.start:
            found = tier.price
    return found
