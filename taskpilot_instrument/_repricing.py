"""What the traffic of one model would have cost at the prices of another."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final, NamedTuple, Self

from taskpilot_instrument._money import multiply, subtract, total
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.pricing import PriceBook
from taskpilot_instrument.usage import TokenUsage

#: Few enough for the first tier of every price, and many enough for a figure of each.
_SOME: Final = 1_000
#: More than any call has: in the last tier.
_MANY: Final = 100_000_000
_PER_ONE: Final = Decimal("0.001")
_ZERO: Final = Decimal(0)


class Repriced(NamedTuple):
    """What the same tokens would have cost.

    :param usd: at the other model's prices for ordinary calls; None where it has none for some of the tokens.
    :param is_exact: False where that may not be all: the other model has dearer rates for long calls, or a fee for
        each, which is not in it; or what the traffic really cost does not follow from its tokens alone (sound,
        pictures, tiers, fees, unknown prices).
    """

    usd: float | None
    is_exact: bool


class Traffic(NamedTuple):
    """What a model's calls came to.

    :param cached_tokens: of the input tokens, those from the provider's cache.
    :param usd: what they cost; exact where ``is_whole``.
    :param is_whole: whether the cost of each call is known.
    """

    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    usd: Decimal
    is_whole: bool


class FlatPrice(NamedTuple):
    """What a model costs for each token of an ordinary call, in USD."""

    given: Decimal
    #: None where it has no price for output, as models of embeddings.
    made: Decimal | None
    #: What an input token from the cache costs beyond any other; mostly less than nothing.
    cached: Decimal
    #: False where there is more to its price: dearer rates for long calls, a fee for each call or search.
    is_all: bool

    @classmethod
    def of(cls, book: PriceBook, model: str) -> Self | None:
        """Return the price of a model; None where it is not known."""
        rates = book.rates(model)
        if rates is None:
            return None
        fee, some, much = (rates.cost(TokenUsage(count, 0)) for count in (0, _SOME, _MANY))
        if fee is None or some is None or much is None:
            return None
        both, cached = rates.cost(TokenUsage(_SOME, _SOME)), rates.cost(TokenUsage(_SOME, 0, cached_tokens=_SOME))
        given = multiply(subtract(some, fee), _PER_ONE)
        return cls(
            given,
            None if both is None else multiply(subtract(both, some), _PER_ONE),
            _ZERO if cached is None else multiply(subtract(cached, some), _PER_ONE),
            cached is not None and not rates.is_partial and multiply(given, Decimal(_MANY)) == much,
        )

    def cost(self, traffic: Traffic) -> Decimal | None:
        """Return what these tokens cost, exactly; None where there is no price for some of them."""
        if traffic.output_tokens and self.made is None:
            return None
        return total(
            multiply(rate, Decimal(count))
            for rate, count in (
                (self.given, traffic.input_tokens),
                (self.made or _ZERO, traffic.output_tokens),
                (self.cached, traffic.cached_tokens),
            )
        )


def prices_of(book: PriceBook, models: Iterable[str]) -> dict[str, FlatPrice]:
    """Return the price of each model.

    :raises ConfigurationError: for one whose price is not known.
    """
    if isinstance(models, str):
        models = (models,)
    found = {model: FlatPrice.of(book, model) for model in models}
    for model, price in found.items():
        if price is None:
            raise ConfigurationError(f"reprice={model!r}: no price is known for this model; see MODEL_PRICING")
    return {model: price for model, price in found.items() if price is not None}


def repriced(book: PriceBook, traffic: Traffic, prices: dict[str, FlatPrice]) -> dict[str, Repriced]:
    """Return what a model's traffic would have cost at each price.

    That the tokens are all there is to its cost is not taken for granted: at its own price they must come to what it
    really cost.
    """
    own = FlatPrice.of(book, traffic.model) if prices else None
    follows = own is not None and traffic.is_whole and own.cost(traffic) == traffic.usd
    costs = {model: price.cost(traffic) for model, price in prices.items()}
    return {
        model: Repriced(None if usd is None else float(usd), is_exact=follows and prices[model].is_all)
        for model, usd in costs.items()
    }
