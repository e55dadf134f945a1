"""Prices against genai-prices' own calculator, brute force over time, and golden numbers."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import genai_prices
import pytest
from genai_prices import data
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.types import ClauseEquals, ModelInfo, ModelPrice, Provider, TieredPrices
from hypothesis import given
from hypothesis import strategies as st

from alkd_ray.annotation import pricing
from alkd_ray.annotation.pricing import LongPromptRates, Rates
from alkd_ray.errors import InputError
from alkd_ray.types import Amounts, Usage

OPENAI = "https://api.openai.com/v1"
DEEPSEEK = "https://api.deepseek.com/v1"

rate = st.integers(0, 10**9)
tokens = st.integers(0, 10**6)
steps = st.lists(
    st.builds(LongPromptRates, st.integers(1, 10**6), rate, rate, rate), max_size=3
).map(lambda found: tuple(sorted(found, key=lambda step: step.above_prompt_tokens)))
rates = st.builds(Rates, rate, rate, rate, st.just("test"), steps)


def test_golden_numbers() -> None:
    gpt4 = pricing.rates_of("gpt-4-0613", OPENAI)  # 30 and 60 USD per million
    assert (gpt4.input, gpt4.cached_input, gpt4.output) == (30_000_000, 30_000_000, 60_000_000)
    assert pricing.cost_microusd(gpt4, Usage(1_000, 500)) == 60_000
    assert pricing.worst_case(gpt4, 2_000, 100) == Amounts(66_000, 2_100, 1)
    assert pricing.expected(gpt4, 1_000, 500) == Amounts(60_000, 1_500, 1)
    mini = pricing.rates_of("gpt-4o-mini", OPENAI)  # 0.15, cached 0.075, 0.60
    assert pricing.cost_microusd(mini, Usage(1_000, 0, 600)) == 105  # 400 * .15 + 600 * .075
    assert pricing.cost_microusd(mini, Usage(1, 0)) == 1  # 0.15 micro-dollars, rounded up
    assert mini.source == f"genai-prices {genai_prices.__version__}: openai/gpt-4o-mini"


def test_every_plain_openai_model_costs_what_genai_prices_says() -> None:
    provider = next(provider for provider in data.providers if provider.id == "openai")
    compared = 0
    for model in provider.models:
        try:
            found = pricing.rates_of(model.id, OPENAI)
        except InputError:
            continue
        if vars(model.get_prices(datetime.now(UTC))).get("cache_write_mtok") is not None:
            continue  # ours takes the dearer of reading and writing, see the next test
        for prompt, completion, cached in ((1, 1, 0), (1_234, 567, 200), (300_001, 3, 300_000)):
            usage = genai_prices.Usage(
                input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached
            )
            exact = genai_prices.calc_price(usage, model.id, provider_id="openai").total_price
            ours = pricing.cost_microusd(found, Usage(prompt, completion, cached))
            assert 0 <= ours - exact * 1_000_000 < 1, model.id
        compared += 1
    assert compared >= 20


def test_cache_writes_are_never_undercounted() -> None:
    provider = next(provider for provider in data.providers if provider.id == "openai")
    compared = 0
    for model in provider.models:
        prices = vars(model.get_prices(datetime.now(UTC)))
        if prices.get("cache_write_mtok") is None or prices.get("output_mtok") is None:
            continue
        found = pricing.rates_of(model.id, OPENAI)
        for prompt in (1_000, 300_000):
            usage = genai_prices.Usage(
                input_tokens=prompt, output_tokens=10, cache_write_tokens=prompt
            )
            exact = genai_prices.calc_price(usage, model.id, provider_id="openai").total_price
            assert pricing.cost_microusd(found, Usage(prompt, 10)) >= exact * 1_000_000
        compared += 1
    assert compared >= 1


def test_prices_by_time_of_day_count_at_their_dearest() -> None:
    provider = next(provider for provider in data.providers if provider.id == "deepseek")
    now = datetime.now(UTC)
    varying = 0
    for model in provider.models:
        # Every quarter of an hour of the two days that the rates look ahead, by brute force.
        seen = [model.get_prices(now + timedelta(minutes=15 * step)) for step in range(96)]
        if any(isinstance(price.input_mtok, TieredPrices) for price in seen):
            continue
        try:
            found = pricing.rates_of(model.id, DEEPSEEK)
        except InputError:
            continue
        dearest = max(Decimal(price.output_mtok) for price in seen)
        assert found.output == dearest * 1_000_000, model.id
        varying += len({price.output_mtok for price in seen}) > 1
    assert varying >= 1


@given(rates, st.integers(0, 10**6), st.integers(0, 10**5), st.data())
def test_no_usage_within_the_limits_costs_more_than_the_worst_case(
    found: Rates, body_bytes: int, most: int, draw: st.DataObject
) -> None:
    worst = pricing.worst_case(found, body_bytes, most)
    prompt = draw.draw(st.integers(0, body_bytes))
    usage = Usage(prompt, draw.draw(st.integers(0, most)), draw.draw(st.integers(0, prompt)))
    assert pricing.cost_microusd(found, usage) <= worst.microusd
    assert usage.total_tokens <= worst.tokens


@given(rates, tokens, tokens, tokens)
def test_costs_are_exact_and_rounded_up(
    found: Rates, prompt: int, completion: int, cached: int
) -> None:
    step = Rates(found.input, found.cached_input, found.output, "")
    for longer in found.long_prompts:
        if prompt > longer.above_prompt_tokens:
            step = Rates(longer.input, longer.cached_input, longer.output, "")
    cached_billed = min(cached, prompt)
    exact = Decimal(
        (prompt - cached_billed) * step.input
        + cached_billed * step.cached_input
        + completion * step.output
    ) / Decimal(10**6)
    cost = pricing.cost_microusd(found, Usage(prompt, completion, cached))
    assert isinstance(cost, int)
    assert 0 <= cost - exact < 1


@given(st.text(max_size=2_000))
def test_bytes_of_the_body_bound_the_characters(text: str) -> None:
    """A byte-level tokenizer can do no worse than one token a byte."""
    body = json.dumps({"messages": [{"role": "user", "content": text}]}, ensure_ascii=False)
    text_bytes = len(text.encode("utf-8", "surrogatepass"))
    assert len(body.encode("utf-8", "surrogatepass")) >= text_bytes


def test_long_prompts_change_the_price_of_every_token() -> None:
    found = Rates(100, 100, 1_000, "", (LongPromptRates(1_000, 300, 300, 4_000),))
    assert pricing.cost_microusd(found, Usage(1_000, 1_000_000)) == 1_001  # 0.1 + 1,000
    assert pricing.cost_microusd(found, Usage(1_001, 1_000_000)) == 4_001
    # A body that cannot hold a long prompt is not held at the long prompts' rate.
    assert pricing.worst_case(found, 1_000, 1_000_000).microusd == 1_001
    assert pricing.worst_case(found, 1_001, 1_000_000).microusd == 4_001


def test_given_rates_are_read_as_written() -> None:
    given_rates = {
        "input_usd_per_million": 0.15,
        "output_usd_per_million": 0.1 + 0.2,
        "cached_input_usd_per_million": 0,
    }
    found = pricing.rates_of("anything", "http://localhost:1/v1", given_rates)
    assert (found.input, found.cached_input) == (150_000, 0)
    assert found.output == 300_001  # 0.30000000000000004, rounded up
    assert "0.15" in found.source
    free = pricing.rates_of("x", "", {"input_usd_per_million": 0, "output_usd_per_million": 0})
    assert pricing.worst_case(free, 10**6, 10**6).microusd == 0


@pytest.mark.parametrize(
    ("given_rates", "named"),
    [
        ({}, "input_usd_per_million is missing"),
        ({"input_usd_per_million": 1}, "output_usd_per_million is missing"),
        ({"input_usd_per_million": 1, "output_usd_per_million": None}, "output_usd_per_million"),
        ({"input_usd_per_million": 1, "output_usd_per_million": 1, "price": 1}, "'price'"),
        ({"input_usd_per_million": -1, "output_usd_per_million": 1}, "0 or more"),
        ({"input_usd_per_million": float("nan"), "output_usd_per_million": 1}, "0 or more"),
        ({"input_usd_per_million": "1", "output_usd_per_million": 1}, "not a number"),
        ({"input_usd_per_million": True, "output_usd_per_million": 1}, "not a number"),
    ],
)
def test_bad_rates_are_named(given_rates: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        pricing.rates_of("m", "", given_rates)


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("no-such-model", OPENAI),
        ("no-such-model", ""),
        ("gpt-4o-mini", "http://127.0.0.1:8000/v1"),  # a proxy may bill anything
        ("text-embedding-3-small", OPENAI),  # no output price
        ("sonar", "https://api.perplexity.ai"),  # billed per request as well
    ],
)
def test_a_price_that_is_not_known_is_an_error_that_says_what_to_give(model: str, url: str) -> None:
    with pytest.raises(InputError, match="input_usd_per_million") as raised:
        pricing.rates_of(model, url)
    assert model in str(raised.value)


def test_models_listed_as_free_need_a_written_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version lists none; a later one may."""
    free = ModelInfo(
        id="free-model",
        match=ClauseEquals("free-model"),
        prices=ModelPrice(input_mtok=Decimal(0), output_mtok=Decimal(0)),
    )
    provider = Provider(
        id="giving", name="Giving", api_pattern="https://giving.example", models=[free]
    )
    monkeypatch.setattr(pricing, "_snapshot", lambda: DataSnapshot([provider], False))
    with pytest.raises(InputError, match="0 must be written"):
        pricing.rates_of("free-model", "https://giving.example/v1")


def test_service_tiers_have_their_own_price() -> None:
    provider = next(provider for provider in data.providers if provider.id == "openai")
    model = next(
        model
        for model in provider.models
        if any(
            variant.when == {"service_tier": "priority"} for variant in model.price_variants or ()
        )
    )
    plain = pricing.rates_of(model.id, OPENAI)
    priority = pricing.rates_of(model.id, OPENAI, service_tier="priority")
    assert priority.output > plain.output
    with pytest.raises(InputError, match="service tier 'auto'"):
        pricing.rates_of(model.id, OPENAI, service_tier="auto")


def test_the_snapshot_is_read_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pricing._snapshot.cache_clear()
    assert pricing.rates_of("gpt-4o-mini", OPENAI).input == 150_000


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="negative tokens"):
        pricing.cost_microusd(Rates(1, 1, 1, ""), Usage(10, -1))


@pytest.mark.parametrize(
    ("microusd", "text"),
    [
        (0, "0.00 USD"),
        (1, "0.000001 USD"),
        (1_500_000, "1.50 USD"),
        (1_234_567_890_000, "1,234,567.89 USD"),
        (-2_000_000, "-2.00 USD"),
    ],
)
def test_amounts_for_people_are_exact(microusd: int, text: str) -> None:
    assert pricing.usd(microusd) == text
