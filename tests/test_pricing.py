"""Costs are exact, the user's table comes first, and what nobody prices stays unknown."""

import decimal
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, StartDateConstraint, TieredPrices, TimeOfDateConstraint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.pricing import (
    MODEL_PRICING,
    Price,
    PriceBook,
    PriceTable,
    calculate_cost,
    price_table_date,
    warm,
)
from taskpilot_instrument.usage import TokenUsage, usage_from

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC).timestamp()
COUNT = st.integers(min_value=0, max_value=10**7)
RATE = st.decimals(min_value=0, max_value=1000, places=4)
OPENAI_URL = "https://api.openai.com/v1/"


@pytest.fixture(autouse=True)
def _empty_table() -> Iterator[None]:
    """Leave the module's table as it was found: empty."""
    yield
    MODEL_PRICING.clear()


def _call(model: str, *, service_tier: str | None = None, base_url: str | None = None) -> LLMCall:
    """Return a call that used a token each way."""
    call = LLMCall("chat", model, base_url=base_url)
    call.usage, call.service_tier = TokenUsage(1, 1), service_tier
    return call


def _book(prices: dict[str, Any] | None = None, now: float = NOW) -> PriceBook:
    return PriceBook(prices or {}, now=lambda: now)


# --- exactness ----------------------------------------------------------------------------------


def test_the_well_known_example_is_exact() -> None:
    """150 + 50 tokens of gpt-4o-mini cost exactly 52.5 millionths of a dollar."""
    assert Price(Decimal("0.0000525"), "genai-prices") == PriceBook().price(TokenUsage(150, 50), "gpt-4o-mini")
    assert calculate_cost(150, 50, "gpt-4o-mini") == 0.0000525


def test_a_million_calls_of_one_token_add_up_to_the_cent() -> None:
    """Nothing is rounded before it is added up."""
    one = PriceBook().price(TokenUsage(1, 0), "gpt-4o-mini")

    assert one is not None
    assert Decimal("0.15") == sum((one.usd for _ in range(1_000_000)), Decimal(0))


@given(
    rates=st.tuples(RATE, RATE, RATE, RATE),
    counts=st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT),
)
def test_a_cost_is_the_sum_over_kinds_of_tokens_times_rate(rates: tuple[Decimal, ...], counts: tuple[int, ...]) -> None:
    """Each token is billed once: as cached, as written to the cache, as plain input or as output."""
    plain, cached, written, made, reasoning = counts
    book = _book({"m": dict(zip(("input", "output", "cached_input", "cache_write"), rates, strict=True))})
    usage = TokenUsage(plain + cached + written, made + reasoning, cached, written, reasoning)

    price = book.price(usage, "m")

    expected = plain * rates[0] + (made + reasoning) * rates[1] + cached * rates[2] + written * rates[3]
    assert price == Price(expected / 1_000_000, "user")


@given(counts=st.tuples(COUNT, COUNT, COUNT), more=st.tuples(COUNT, COUNT), rates=st.tuples(RATE, RATE, RATE))
def test_more_tokens_never_cost_less(
    counts: tuple[int, int, int], more: tuple[int, int], rates: tuple[Decimal, ...]
) -> None:
    """Cost grows with input and with output."""
    book = _book({"m": dict(zip(("input", "output", "cached_input"), rates, strict=True))})
    plain, cached, made = counts
    less = book.price(TokenUsage(plain + cached, made, cached), "m")
    more_ = book.price(TokenUsage(plain + cached + more[0], made + more[1], cached), "m")

    assert less is not None
    assert more_ is not None
    assert less.usd <= more_.usd


@given(given_=COUNT, rate=RATE, cached_rate=RATE)
def test_cached_tokens_are_never_billed_twice(given_: int, rate: Decimal, cached_rate: Decimal) -> None:
    """Where all of the input was cached, the input rate plays no part."""
    book = _book({"m": {"input": rate, "output": 1, "cached_input": cached_rate}})

    assert book.price(TokenUsage(given_, 0, given_), "m") == Price(given_ * cached_rate / 1_000_000, "user")


@given(given_=COUNT, data=st.data())
def test_cached_tokens_without_a_rate_of_their_own_cost_the_input_rate(given_: int, data: st.DataObject) -> None:
    """The user's table need not know about caches."""
    cached = data.draw(st.integers(0, given_))
    book = _book({"m": {"input": 2, "output": 8}})

    assert book.price(TokenUsage(given_, 0, cached), "m") == book.price(TokenUsage(given_, 0), "m")


@given(st.floats(min_value=0, max_value=1e6))
def test_a_float_means_the_decimal_that_it_prints_as(rate: float) -> None:
    """2.1 is two dollars ten, not the nearest binary fraction."""
    book = _book({"m": {"input": rate, "output": 0}})

    price = book.price(TokenUsage(1_000_000, 0), "m")

    assert price == Price(Decimal(repr(rate)), "user")


def test_the_precision_that_the_application_works_with_does_not_matter() -> None:
    """A context that rounds to two digits, or raises where something is rounded, changes no cost."""
    book = _book({"m": {"input": Decimal("1.23456789"), "output": 0}})

    with decimal.localcontext(decimal.Context(prec=2, traps=[decimal.Inexact])):
        price = book.price(TokenUsage(987_654_321, 0), "m")

    assert price == Price(Decimal("1.23456789") * 987_654_321 / 1_000_000, "user")


# --- the published prices -----------------------------------------------------------------------

# A few entries of the table match other names than their own.
MODELS = [(each, model) for each in providers for model in each.models if each.find_model(model.id) is not None]
SEEN_IN_USAGE = ("_mtok", "searches_kcount", "code_executions_kcount")


def _expected(provider: Provider, name: str, usage: TokenUsage) -> Decimal | None:
    """Ask the package itself, where usage can tell what the model bills by."""
    model = provider.find_model(name, all_providers=providers)
    assert model is not None
    moment = datetime.fromtimestamp(NOW, tz=UTC)
    price = model.get_prices(moment)
    listed = {key for key, value in vars(price).items() if value is not None}
    if not listed:
        return Decimal(0) if model.id.endswith(":free") else None
    is_output_free = provider.id == "openai-decisions"  # a price list of input alone: the package takes nothing for it
    if "input_mtok" not in listed or ("output_mtok" not in listed and usage.output_tokens and not is_output_free):
        return None
    if not all(key.endswith(SEEN_IN_USAGE) for key in listed - {"requests_kcount"}):
        return None
    if usage.cached_tokens and model.id.startswith("ft:") and "cache_read_mtok" not in listed:
        return None  # it takes the full rate, which is not what OpenAI takes
    given_ = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
    )
    return model.calc_price(given_, provider, genai_request_timestamp=moment).total_price


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(MODELS), st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT))
def test_each_published_price_is_what_its_package_computes(
    entry: tuple[Provider, ModelInfo], counts: tuple[int, ...]
) -> None:
    """Compiled rates agree with the slow computation: flat, by size, by date, by hour, per request."""
    provider, model = entry
    plain, cached, written, made, reasoning = counts
    usage = TokenUsage(plain + cached + written, made + reasoning, cached, written, reasoning)

    price = _book().price(usage, model.id, provider=provider.id)

    assert _expected(provider, model.id, usage) == (price.usd if price is not None else None)


def _price_lists(model: ModelInfo) -> list[ModelPrice]:
    return [model.prices] if isinstance(model.prices, ModelPrice) else [each.prices for each in model.prices]


def test_a_larger_call_is_billed_by_its_tier_from_the_first_token() -> None:
    """Above the threshold the higher rate holds for all tokens of the call, at the threshold it does not yet."""
    tiered = [
        (provider, model, model.prices.input_mtok)
        for provider, model in MODELS
        if isinstance(model.prices, ModelPrice) and isinstance(model.prices.input_mtok, TieredPrices)
        if provider.find_model(model.id) is model
    ]
    assert tiered
    for provider, model, rate in tiered:
        start = rate.tiers[0].start
        at = _book().price(TokenUsage(start, 0), model.id, provider=provider.id)
        above = _book().price(TokenUsage(start + 1, 0), model.id, provider=provider.id)

        assert at == Price(rate.base * start / 1_000_000, "genai-prices")
        assert above == Price(rate.tiers[0].price * (start + 1) / 1_000_000, "genai-prices")


def _conditional(kind: type) -> list[tuple[Provider, ModelInfo, Any]]:
    return [
        (provider, model, each.constraint)
        for provider, model in MODELS
        if not isinstance(model.prices, ModelPrice) and provider.find_model(model.id) is model
        for each in model.prices
        if isinstance(each.constraint, kind) and "input_mtok" in vars(each.prices)
    ]


def _follows_the_clock(provider: Provider, model: ModelInfo, change: datetime) -> None:
    """Check one book just before a change and at it."""
    clock = [0.0]
    book = PriceBook({}, now=lambda: clock[0])
    for moment in (change - timedelta(seconds=1), change):
        clock[0] = moment.timestamp()
        rate = model.get_prices(moment).input_mtok
        base = rate.base if isinstance(rate, TieredPrices) else rate
        price = book.price(TokenUsage(1000, 0), model.id, provider=provider.id)

        assert base is not None
        assert price == Price(base / 1000, "genai-prices")


def test_a_price_that_starts_on_a_date_holds_from_that_midnight() -> None:
    """A book that is open across the date changes its answer in time."""
    entries = _conditional(StartDateConstraint)
    assert entries
    for provider, model, constraint in entries[:20]:
        _follows_the_clock(provider, model, datetime.combine(constraint.start_date, time(), tzinfo=UTC))


def test_a_price_by_the_hour_follows_the_hour() -> None:
    """Off-peak prices begin and end with the minute."""
    entries = _conditional(TimeOfDateConstraint)
    assert entries
    for provider, model, constraint in entries:
        for change in (constraint.start_time, constraint.end_time):
            _follows_the_clock(provider, model, datetime(2026, 11, 25, change.hour, change.minute, tzinfo=UTC))


def test_a_service_tier_has_its_own_price() -> None:
    """Flex costs less and priority more than the standard tier, whatever that is called."""
    book = _book()
    costs = {
        tier: book.price(TokenUsage(1000, 1000), "gpt-5", base_url=OPENAI_URL, service_tier=tier)
        for tier in (None, "auto", "default", "flex", "priority")
    }

    assert all(costs.values())
    assert costs[None] == costs["auto"] == costs["default"]
    assert costs["flex"].usd < costs["default"].usd < costs["priority"].usd  # type: ignore[union-attr]


def test_a_service_tier_that_is_not_priced_is_unknown() -> None:
    """The standard price would be wrong for it."""
    assert _book().price(TokenUsage(1, 1), "gpt-3.5-turbo", service_tier="priority") is None


def test_fine_tuned_models_have_their_own_price_or_none() -> None:
    """The price of the model underneath is not theirs."""
    book = _book()
    tuned = book.price(TokenUsage(1000, 0), "ft:gpt-4o-mini-2024-07-18:org::id")
    base = book.price(TokenUsage(1000, 0), "gpt-4o-mini-2024-07-18")

    assert tuned is not None
    assert base is not None
    assert tuned.usd > base.usd
    assert book.price(TokenUsage(1000, 0), "ft:gpt-4.1-2025-04-14:claude-fans::id") is None


# --- what has no price --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "usage",
    [
        TokenUsage(None, 10),
        TokenUsage(10, None),
        TokenUsage(10, 10, input_audio_tokens=1),
        TokenUsage(10, 10, output_audio_tokens=1),
        TokenUsage(10, 10, cached_tokens=11),
        TokenUsage(10, 10, cached_tokens=6, cache_write_tokens=5),
        TokenUsage(10, 10, reasoning_tokens=11),
        TokenUsage(10, 10, input_image_tokens=11),
        TokenUsage(10, 10, output_image_tokens=11),
    ],
    ids=str,
)
def test_what_cannot_be_priced_whole_is_unknown(usage: TokenUsage) -> None:
    """No half prices: a missing count, audio without a rate, or a part larger than its whole."""
    assert _book({"m": {"input": 1, "output": 1}}).price(usage, "m") is None


def test_audio_has_the_rate_of_audio() -> None:
    """A model with audio rates bills audio tokens by them, and nothing twice."""
    book = _book()
    model = "gpt-realtime"
    listed = next(m for p, m in MODELS if p.id == "openai" and m.id == model).prices
    # 100 input: 30 cached audio, 30 audio, 10 cached text, 30 text; 50 output: 20 audio, 30 text
    parts = {
        "cache_audio_read_mtok": 30,
        "input_audio_mtok": 30,
        "cache_read_mtok": 10,
        "input_mtok": 30,
        "output_audio_mtok": 20,
        "output_mtok": 30,
    }
    expected = sum((tokens * vars(listed)[key] for key, tokens in parts.items()), Decimal(0)) / 1_000_000

    price = book.price(TokenUsage(100, 50, 40, 0, 0, 60, 20, 30), model)

    assert price == Price(expected, "genai-prices")


def test_cached_audio_that_nobody_counted_is_unknown() -> None:
    """Where cached and audio tokens overlap by an untold number, there is no exact cost."""
    assert _book().price(TokenUsage(100, 0, 40, 0, 0, 60), "gpt-realtime") is None


def test_image_tokens_cost_text_tokens_unless_they_have_a_rate() -> None:
    """Models that see bill images as text; models that paint have a rate for them."""
    book = _book({"seeing": {"input": 2, "output": 8}})

    assert book.price(TokenUsage(100, 1, input_image_tokens=90), "seeing") == book.price(TokenUsage(100, 1), "seeing")
    painted = book.price(TokenUsage(100, 1, input_image_tokens=90), "gpt-image-1")
    plain = book.price(TokenUsage(100, 1), "gpt-image-1")
    assert painted is not None
    assert plain is not None
    assert painted.usd > plain.usd


def test_embeddings_need_no_output() -> None:
    """A model that makes no output is priced by its input alone."""
    price = _book().price(TokenUsage(1000, None), "text-embedding-3-small")

    assert price == Price(Decimal("0.00002"), "genai-prices")
    assert _book().price(TokenUsage(1000, 1), "text-embedding-3-small") is None


def test_reasoning_that_is_counted_beside_the_output_is_billed_as_output() -> None:
    """Some hosts leave reasoning out of the output tokens, not out of the bill."""
    told = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 95,
        "completion_tokens_details": {"reasoning_tokens": 80},
    }
    usage = usage_from(told)

    assert usage is not None
    assert Price(Decimal("0.00086"), "user") == _book({"m": {"input": 1, "output": 10}}).price(usage, "m")


@given(st.text(max_size=40), st.none() | st.text(max_size=40), st.none() | st.sampled_from(["nobody", "azure"]))
def test_a_made_up_model_has_no_price(model: str, response_model: str | None, provider: str | None) -> None:
    """Unknown is unknown, never zero and never somebody else's price."""
    prefix = "no-such-model "
    answer = _book().price(
        TokenUsage(10, 10),
        prefix + model,
        response_model=response_model and prefix + response_model,
        provider=provider,
    )

    assert answer is None


def test_an_unknown_model_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning for a model, however often it is called."""
    book = _book()

    with caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        for _ in range(3):
            book.price_call(_call("no-such-model"))
        MODEL_PRICING["other"] = {"input": 1, "output": 1}
        book.price_call(_call("no-such-model", service_tier="flex"))

    assert 1 == len(caplog.records)
    assert "no-such-model" in caplog.text


def test_asking_for_a_price_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks what a model would cost has made no call; and the first call of it is warned of all the same."""
    book = _book()

    with caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        assert calculate_cost(10, 10, "asked-for-only") is None
        assert book.price(TokenUsage(10, 10), "no-such-model") is None
        assert book.price(TokenUsage(10, 10, input_audio_tokens=5), "gpt-4o", provider="openai") is None
        assert book.rates("no-such-model") is None
        assert book.most_pico(_call("no-such-model"), 10, 10) is None
        assert [] == caplog.records
        book.price_call(_call("no-such-model"))

    assert ["no-such-model" in record.getMessage() for record in caplog.records] == [True]


def test_ever_new_model_names_do_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Lookups kept, and warnings written, stay below a ceiling."""
    book = _book({"m": {"input": 1, "output": 1}})

    with caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        for number in range(3000):
            book.price_call(_call(f"no-such-model-{number}", base_url=OPENAI_URL))
            assert len(book._cache[1]) <= 1024

    assert 256 == len(caplog.records) == len(book._warned)
    assert book.price(TokenUsage(1, 1), "m") is not None


# --- whose price --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "provider", "model", "response_model", "same_as"),
    [
        (None, "openai", "gpt-4o-mini", None, ("openai", "gpt-4o-mini")),
        (OPENAI_URL, "openai", "gpt-4o-mini", "gpt-4o-mini-2024-07-18", ("openai", "gpt-4o-mini")),
        ("http://127.0.0.1:4000/v1", "openai", "gpt-4o-mini", None, ("openai", "gpt-4o-mini")),
        ("http://localhost/v1", "openai", "claude-sonnet-4-5", None, ("anthropic", "claude-sonnet-4-5")),
        ("https://llm.example.com/v1", "openai", "alias", "gpt-4o-mini", ("openai", "gpt-4o-mini")),
        ("https://api.groq.com/openai/v1", "openai", "llama-3.1-8b-instant", None, ("groq", "llama-3.1-8b-instant")),
        ("https://openrouter.ai/api/v1", "openai", "openai/gpt-4o", None, ("openrouter", "openai/gpt-4o")),
        ("https://r.openai.azure.com/openai/", "openai", "mine", "gpt-4o-mini", ("openai", "gpt-4o-mini")),
        ("https://r.services.ai.azure.com/openai/v1/", "openai", "mine", "gpt-4o-mini", ("openai", "gpt-4o-mini")),
        ("https://r.openai.azure.com/", "azure.ai.openai", "o3-mini", "o3-mini", ("azure", "o3-mini")),
        (None, "x_ai", "grok-3", None, ("x-ai", "grok-3")),
        (None, None, "gpt-4o-mini", None, ("openai", "gpt-4o-mini")),
        (None, None, "claude-sonnet-4-5", None, ("anthropic", "claude-sonnet-4-5")),
    ],
)
def test_the_host_decides_whose_price_holds(
    base_url: str | None, provider: str | None, model: str, response_model: str | None, same_as: tuple[str, str]
) -> None:
    """A known host has its own prices; an unknown one is a gateway to OpenAI, or to whoever makes the model."""
    usage = TokenUsage(1000, 1000)
    call = {"response_model": response_model, "provider": provider, "base_url": base_url}

    expected = _book().price(usage, same_as[1], provider=same_as[0])

    assert expected is not None
    assert expected == _book().price(usage, model, **call)


@pytest.mark.parametrize(
    ("base_url", "provider", "model", "response_model"),
    [
        ("https://api.groq.com/openai/v1", "openai", "gpt-4o-mini", None),
        ("https://r.openai.azure.com/", "openai", "gpt-4o-mini", "no-such-model"),
        (None, "openai", "claude-sonnet-4-5", None),
        (None, "nobody", "gpt-4o-mini", None),
    ],
)
def test_no_price_is_borrowed_from_another_provider(
    base_url: str | None, provider: str, model: str, response_model: str | None
) -> None:
    """A host that does not list a model does not have OpenAI's price for it; nor does a deployment's name count."""
    call = {"response_model": response_model, "provider": provider, "base_url": base_url}

    assert _book().price(TokenUsage(1, 1), model, **call) is None


def test_the_model_that_answered_is_priced_before_the_one_asked_for() -> None:
    """An alias of a gateway resolves to what it stands for."""
    book = _book()

    assert book.price(TokenUsage(1, 1), "gpt-4o-mini") == book.price(
        TokenUsage(1, 1), "gpt-4o", response_model="gpt-4o-mini"
    )
    assert book.price(TokenUsage(1, 1), "gpt-4o") == book.price(TokenUsage(1, 1), "gpt-4o", response_model="no-such")


# --- the user's table ---------------------------------------------------------------------------


def test_the_users_price_wins() -> None:
    """By the model asked for, then by the one that answered, and always before the published price."""
    book = _book({"gpt-4o-mini": {"input": 1, "output": 1}, "gpt-4o-mini-2024-07-18": {"input": 2, "output": 2}})
    usage = TokenUsage(1_000_000, 0)

    assert Price(Decimal(1), "user") == book.price(usage, "gpt-4o-mini", response_model="gpt-4o-mini-2024-07-18")
    assert Price(Decimal(2), "user") == book.price(usage, "alias", response_model="gpt-4o-mini-2024-07-18")


def test_a_change_of_the_table_holds_from_the_next_call() -> None:
    """Setting, changing, removing and clearing prices need no restart."""
    usage = TokenUsage(1_000_000, 0)
    book = PriceBook()

    assert book.price(usage, "my-model") is None
    MODEL_PRICING["my-model"] = {"input": 2.50, "output": 10.00}
    assert Price(Decimal("2.5"), "user") == book.price(usage, "my-model")
    assert calculate_cost(1_000_000, 0, "my-model") == 2.5
    MODEL_PRICING["my-model"] = {"input": 3, "output": 10.00}
    assert Price(Decimal(3), "user") == book.price(usage, "my-model")
    del MODEL_PRICING["my-model"]
    assert book.price(usage, "my-model") is None


def test_the_default_prices_unknown_models_as_an_estimate() -> None:
    """It is absent until the user adds it, says so in its source, and never beats a real price."""
    usage = TokenUsage(1_000_000, 0)
    book = PriceBook()

    assert "default" not in MODEL_PRICING
    MODEL_PRICING["default"] = {"input": 7, "output": 7}
    assert Price(Decimal(7), "default") == book.price(usage, "no-such-model")
    assert Price(Decimal(7), "default") == book.price(usage, "default")
    assert Price(Decimal(7), "default") == book.price(usage, None)
    assert Price(Decimal("0.15"), "genai-prices") == book.price(usage, "gpt-4o-mini")


def test_the_table_reads_back_what_was_written() -> None:
    """It is a mapping whose entries change only as a whole."""
    table = PriceTable({"a": {"input": 2.5, "output": 10}})
    table.update({"b": {"input": 1, "output": 2, "cached_input": Decimal("0.1"), "cache_write": 1.25}})

    assert ["a", "b"] == list(table)
    assert {"input": 2.5, "output": 10} == table["a"]
    assert "2.5" in repr(table)
    with pytest.raises(TypeError):
        table["a"]["input"] = 3  # type: ignore[index]
    with pytest.raises(KeyError):
        del table["c"]


@pytest.mark.parametrize(
    ("prices", "complaint"),
    [
        ({"input": 1}, "'output' is missing"),
        ({"output": 1}, "'input' is missing"),
        (
            {"input": 1, "output": 1, "cached": 1},
            "unknown key 'cached'; valid keys are input, output, cached_input, cache_write",
        ),
        ({"input": -1, "output": 1}, "['input']: expected a finite number that is not negative, not -1"),
        ({"input": 1, "output": float("nan")}, "['output']: expected a finite number"),
        ({"input": 1, "output": float("inf")}, "['output']: expected a finite number"),
        ({"input": Decimal("NaN"), "output": 1}, "['input']: expected a finite number"),
        ({"input": True, "output": 1}, "['input']: expected a number of USD per 1M tokens, not True"),
        ({"input": "2.5", "output": 1}, "['input']: expected a number of USD per 1M tokens, not '2.5'"),
        ({"input": None, "output": 1}, "['input']: expected a number of USD per 1M tokens, not None"),
        (2.5, "expected a mapping with input, output, cached_input, cache_write, not float"),
    ],
    ids=str,
)
def test_a_bad_price_is_refused_with_what_would_be_right(prices: Any, complaint: str) -> None:
    """The error names the model, the key and what is valid, and the table stays as it was."""
    MODEL_PRICING["m"] = {"input": 1, "output": 1}

    with pytest.raises(ConfigurationError) as refused:
        MODEL_PRICING["m"] = prices

    assert str(refused.value).startswith("MODEL_PRICING['m']")
    assert complaint in str(refused.value)
    assert {"m": {"input": 1, "output": 1}} == dict(MODEL_PRICING)


@pytest.mark.parametrize("model", ["", None, 4])
def test_a_model_without_a_name_is_refused(model: Any) -> None:
    """Prices belong to named models."""
    with pytest.raises(ConfigurationError, match="non-empty string"):
        MODEL_PRICING[model] = {"input": 1, "output": 1}


def test_threads_see_whole_prices_and_the_last_change() -> None:
    """While one thread changes the table, the others read one of its states, and the last one at the end."""
    table = PriceTable({"m": {"input": 0, "output": 0}})
    book = PriceBook(table)
    usage = TokenUsage(1_000_000, 1_000_000)
    stop = threading.Event()
    odd: list[object] = []

    def read() -> None:
        while not stop.is_set():
            price = book.price(usage, "m")
            # Input and output are always changed to the same number, so every whole state is even.
            if price is None or price.usd % 2:
                odd.append(price)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 501):
        table["m"] = {"input": number, "output": number}
        assert Price(Decimal(2 * number), "user") == book.price(usage, "m")
    stop.set()
    for reader in readers:
        reader.join()

    assert not odd


def test_threads_that_add_models_lose_none() -> None:
    """Concurrent changes of the table all arrive."""
    table = PriceTable()

    def add(thread: int) -> None:
        for number in range(100):
            table[f"{thread}-{number}"] = {"input": 1, "output": 1}

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 800 == len(table) == table.version


# --- the functions around it --------------------------------------------------------------------


def test_a_call_is_priced_by_what_the_patch_learned() -> None:
    """The record of a call has all that the price depends on; a call without usage has no price."""
    call = LLMCall("chat", "gpt-4o-mini", base_url=OPENAI_URL)
    book = _book()

    assert book.price_call(call) is None
    call.usage = TokenUsage(150, 50)
    call.response_model = "gpt-4o-mini-2024-07-18"
    assert Price(Decimal("0.0000525"), "genai-prices") == book.price_call(call)
    call.service_tier = "priority"
    assert book.price(call.usage, "gpt-4o-mini", service_tier="priority") == book.price_call(call)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"input_tokens": -1}, "input_tokens"),
        ({"output_tokens": 1.0}, "output_tokens"),
        ({"input_tokens": True}, "input_tokens"),
        ({"cached_tokens": "3"}, "cached_tokens"),
        ({"cached_tokens": 101}, "cannot exceed"),
        ({"cached_tokens": 60, "cache_write_tokens": 41}, "cannot exceed"),
        ({"reasoning_tokens": 51}, "cannot exceed"),
    ],
    ids=str,
)
def test_wrong_counts_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    """A cost is computed from counts that can be true, or not at all."""
    counts: dict[str, Any] = {"input_tokens": 100, "output_tokens": 50, **arguments}

    with pytest.raises(ConfigurationError, match=complaint):
        calculate_cost(model="gpt-4o-mini", **counts)


def test_a_cost_can_be_asked_of_a_provider() -> None:
    """The price of the named provider is taken, and none where it has no such model."""
    assert calculate_cost(1_000_000, 0, "gpt-4o-mini", provider="azure") == 0.15
    assert calculate_cost(1_000_000, 0, "gpt-4o-mini", cached_tokens=1_000_000) == 0.075
    assert calculate_cost(1, 1, "gpt-4o-mini", provider="groq") is None
    assert calculate_cost(1, 1, "no-such-model") is None


def test_the_price_table_is_named_with_its_version() -> None:
    """A report of costs can say by which table."""
    assert price_table_date().startswith("genai-prices 0.")


def test_the_price_table_is_imported_by_the_first_lookup_or_when_asked() -> None:
    """Importing the library costs nothing of it, and opens no connection."""
    code = (
        "import sys; from taskpilot_instrument import pricing; before = 'genai_prices.data' in sys.modules;"
        "pricing.warm(); print(before, 'genai_prices.data' in sys.modules)"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["False", "True"]
    warm()
