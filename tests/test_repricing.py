"""The same traffic at the prices of another model: exact where tokens are all there is to it, and marked where not."""

from decimal import Decimal

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_records import llm_call

import taskpilot_instrument as tp
from taskpilot_instrument._repricing import Repriced
from taskpilot_instrument._unit_prices import Rates
from taskpilot_instrument.comparison import ModelComparison, ModelFigures, compare
from taskpilot_instrument.pricing import PriceBook
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.testing import Captured
from taskpilot_instrument.usage import TokenUsage

USAGES = st.builds(
    lambda given, made, share: TokenUsage(given, made, cached_tokens=given * share // 100),
    st.integers(0, 100_000), st.integers(0, 20_000), st.integers(0, 100),
)  # fmt: skip
FLAT = {"mine": {"input": 1.5, "output": 6, "cached_input": 0.375}, "other": {"input": 0.1, "output": 0.4}}
#: A published price with a dearer rate for long calls.
TIERED = "gemini-2.5-pro"


def compared(book: PriceBook, usages: list[TokenUsage], *reprice: str, model: str = "mine") -> ModelFigures:
    """Return the figures of calls with these usages, at the book's prices."""
    backend = MetricsBackend()
    for usage in usages:
        price = book.price(usage, model)
        cost = None if price is None else price.usd
        backend.finished(llm_call(model=model, usage=usage, cost=cost))
    (found,) = compare(backend, reprice=reprice, book=book).models
    return found


@given(st.lists(USAGES, min_size=1, max_size=20))
def test_it_is_what_each_call_would_have_cost(usages: list[TokenUsage]) -> None:
    """Where calls are priced by their tokens alone, the sum over all of them is told, exactly."""
    book = PriceBook(FLAT)
    found = compared(book, usages, "mine", "other", "gpt-4o-mini").repriced
    for model in ("mine", "other", "gpt-4o-mini"):
        each = [price.usd for usage in usages if (price := book.price(usage, model)) is not None]
        assert Repriced(float(sum(each, Decimal(0))), is_exact=True) == found[model]


def test_dearer_rates_for_long_calls_are_marked() -> None:
    """Of many calls nobody knows how long each was: short ones are taken for granted, and that is said."""
    usage = TokenUsage(150_000, 100)
    found = compared(PriceBook(FLAT), [usage] * 10, TIERED).repriced[TIERED]
    one = PriceBook(FLAT).price(usage, TIERED)
    assert one is not None
    assert Repriced(float(one.usd * 10), is_exact=False) == found


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (TokenUsage(1_000, 10), Decimal("0.5")),  # such as a call at half price, or one with a fee
        (TokenUsage(1_000, 10, input_audio_tokens=500), Decimal("0.01")),
        (TokenUsage(1_000, 10), None),
    ],
    ids=["another price", "sound", "no price"],
)
def test_a_cost_that_tokens_do_not_explain_is_marked(usage: TokenUsage, cost: Decimal | None) -> None:
    """Where the traffic's own cost does not follow from its tokens, neither does what it would cost elsewhere."""
    backend = MetricsBackend()
    backend.finished(llm_call(model="mine", usage=usage, cost=cost))
    (found,) = compare(backend, reprice=["other"], book=PriceBook(FLAT)).models
    assert not found.repriced["other"].is_exact
    assert pytest.approx(0.000104) == found.repriced["other"].usd


def test_fees_of_each_call_are_marked_and_left_out() -> None:
    """What is taken for each call is not spread over tokens, of which another model's calls may have had any number."""
    book = PriceBook(FLAT)
    rates = Rates({"input": Decimal(1), "output": Decimal(2)}, per_thousand_requests=Decimal(12))
    assert (Decimal("0.012"), Decimal("0.013")) == (rates.cost(TokenUsage(0, 0)), rates.cost(TokenUsage(1_000, 0)))
    book.rates = {"mine": book.rates("mine"), "fees": rates}.get  # type: ignore[method-assign] # no such price is ours
    assert {"fees": Repriced(0.0022, is_exact=False)} == compared(book, [TokenUsage(2_000, 100)], "fees").repriced


def test_embeddings_are_told_at_the_price_of_embeddings() -> None:
    """What has no output can be told at a price that knows none; what has, cannot."""
    book, small, large = PriceBook(FLAT), "text-embedding-3-small", "text-embedding-3-large"
    usage = TokenUsage(1_000, None)
    price = book.price(usage, large)
    assert price is not None
    assert Repriced(float(price.usd), is_exact=True) == compared(book, [usage], large, model=small).repriced[large]
    assert compared(book, [TokenUsage(1_000, 1)], large).repriced[large].usd is None


def test_it_is_shown(captured: Captured, client: openai.OpenAI) -> None:
    """The table has what was spent and what would have been, and says what that rests on; JSON brings it back whole."""
    for _ in range(3):
        client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
    plain, asked = captured.handle.compare_models(), captured.handle.compare_models(reprice=["gpt-4o", "gpt-4.1-nano"])
    assert "at gpt-4o" not in str(plain)
    assert "same tokens" not in str(plain)
    (figures,) = asked.models
    usage = TokenUsage(figures.input_tokens, figures.output_tokens)
    price = PriceBook().price(usage, "gpt-4o")
    assert price is not None
    assert Repriced(float(price.usd), is_exact=True) == figures.repriced["gpt-4o"]
    (line,) = [line for line in str(asked).splitlines() if "at gpt-4o" in line]
    assert "(+1567 %)" in line
    assert "it may need more or fewer of them" in str(asked)
    assert asked == ModelComparison.from_dict(asked.as_dict())


@pytest.mark.parametrize("asked", ["no-such-model", ["gpt-4o", "no-such-model"]])
def test_a_model_without_a_price_is_refused(captured: Captured, asked: str | list[str]) -> None:
    """Nothing can be said at a price that nobody knows; a single name is as good as a list of one."""
    with pytest.raises(tp.ConfigurationError, match=r"no-such-model.*no price is known"):
        captured.handle.compare_models(reprice=asked)
    assert () == captured.handle.compare_models(reprice="gpt-4o").models
