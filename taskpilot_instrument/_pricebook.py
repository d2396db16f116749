"""Compile prices to whole numbers, and find the published ones.

A compiled price has the shape of a usage: one coefficient for each count. The cost is the sum of the
products, exact because it is integer arithmetic in a unit fine enough for every rate of the model.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import cache
from operator import mul
from typing import TYPE_CHECKING, Final, NamedTuple

from taskpilot_instrument.usage import TokenUsage

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, PriceVariant, Provider, TieredPrices

# A context of our own: the application may have set a precision that rounds, or traps that raise.
_EXACT: Final = Context(prec=1000)
_PER_MILLION_EXPONENT: Final = -6
_NEVER: Final = math.inf

# Keys of the price table, without their `_mtok`.
INPUT: Final = "input"
OUTPUT: Final = "output"
CACHE_READ: Final = "cache_read"
CACHE_WRITE: Final = "cache_write"
_INPUT_AUDIO: Final = "input_audio"
_OUTPUT_AUDIO: Final = "output_audio"
_CACHED_AUDIO: Final = "cache_audio_read"


class Rates:
    """The compiled price of one model.

    A cached, written, reasoning or image token without a rate of its own is an ordinary input or output
    token, as the price table and the providers have it. Audio without a rate has no known price: it
    costs many times the text rate, also where the table leaves it out.
    """

    __slots__ = (
        "_base", "_cache_is_unknown", "_cached_audio_rated", "_exponent", "_input_audio_rated", "_output_audio_rated",
        "_output_rated", "_per_request", "_tiers",
    )  # fmt: skip

    def __init__(
        self,
        rates: Mapping[str, Decimal],
        *,
        tiers: Sequence[tuple[int, Mapping[str, Decimal]]] = (),
        per_thousand_requests: Decimal = Decimal(0),
        cache_is_unknown: bool = False,
    ) -> None:
        """Compile rates; ``input`` is among them.

        :param rates: USD per million tokens, by key.
        :param tiers: rates that hold for the whole call above so many input tokens, ascending.
        :param per_thousand_requests: USD per thousand calls, on top of the tokens.
        :param cache_is_unknown: True where cached tokens have a rate of their own that is not among these.
        """
        self._cache_is_unknown = cache_is_unknown
        every = [per_thousand_requests, *rates.values(), *(rate for _, tier in tiers for rate in tier.values())]
        shift = max(0, *(-int(rate.as_tuple().exponent) for rate in every))
        self._exponent = _PER_MILLION_EXPONENT - shift
        self._base = _coefficients(rates, shift)
        self._tiers = tuple((start, _coefficients(tier, shift)) for start, tier in tiers)
        self._per_request = _whole(per_thousand_requests, shift) * 1000
        self._output_rated = OUTPUT in rates
        self._input_audio_rated = _INPUT_AUDIO in rates
        self._output_audio_rated = _OUTPUT_AUDIO in rates
        self._cached_audio_rated = _CACHED_AUDIO in rates

    def cost(self, usage: TokenUsage) -> Decimal | None:
        """Return what the usage costs in USD; None where a part of it is unknown or has no rate."""
        given, made, cached, written, reasoning, *rare = usage
        if given is None or cached + written > given or (cached and self._cache_is_unknown):
            return None
        rates = self._base
        for start, tier in self._tiers:
            if given > start:
                rates = tier
        if made is None:
            if rates.output_tokens:
                return None
            made, usage = 0, TokenUsage(given, 0, *usage[2:])  # embeddings have none
        elif made and not self._output_rated:
            return None
        if any(rare):
            if not self._covers(usage, rates):
                return None
        elif reasoning > made:
            return None
        total = sum(map(mul, rates, usage), self._per_request)
        return _EXACT.scaleb(total, self._exponent)

    def _covers(self, usage: TokenUsage, rates: TokenUsage) -> bool:
        """Tell whether the rates say what audio, image and uncounted tokens cost."""
        if (
            (usage.input_audio_tokens and not self._input_audio_rated)
            or (usage.output_audio_tokens and not self._output_audio_rated)
            or (usage.cached_audio_tokens and not self._cached_audio_rated)
            or (usage.extra_output_tokens and not self._output_rated)
        ):
            return False
        return _is_consistent(usage) and not _is_ambiguous(usage, rates)


def _coefficients(rates: Mapping[str, Decimal], shift: int) -> TokenUsage:
    """Return what one more of each count adds.

    Counts include one another, so a detail's coefficient is what it costs beyond the count it is part of.
    """
    whole = {key: _whole(rate, shift) for key, rate in rates.items()}
    given, made = whole[INPUT], whole.get(OUTPUT, 0)
    cached = whole.get(CACHE_READ, given)
    audio = whole.get(_INPUT_AUDIO, given)
    return TokenUsage(
        input_tokens=given,
        output_tokens=made,
        cached_tokens=cached - given,
        cache_write_tokens=whole.get(CACHE_WRITE, given) - given,
        reasoning_tokens=whole.get("output_reasoning", made) - made,
        input_audio_tokens=audio - given,
        output_audio_tokens=whole.get(_OUTPUT_AUDIO, made) - made,
        # Part of both the cached and the audio tokens, hence counted by both.
        cached_audio_tokens=whole.get(_CACHED_AUDIO, 0) - cached - audio + given,
        input_image_tokens=whole.get("input_image", given) - given,
        output_image_tokens=whole.get("output_image", made) - made,
        extra_output_tokens=made,
    )


def _whole(rate: Decimal, shift: int) -> int:
    return int(_EXACT.scaleb(rate, shift))


def _is_consistent(usage: TokenUsage) -> bool:
    """Tell whether no detail exceeds what it is part of; else the numbers mean something we do not know."""
    text = (usage.input_tokens or 0) - usage.input_audio_tokens - usage.input_image_tokens
    made = (usage.output_tokens or 0) + usage.extra_output_tokens
    cached_audio = usage.cached_audio_tokens
    cached_text = usage.cached_tokens + usage.cache_write_tokens - cached_audio if cached_audio else 0
    return (
        text >= cached_text
        and made >= usage.reasoning_tokens
        and made >= usage.output_audio_tokens + usage.output_image_tokens
        and cached_audio <= min(usage.cached_tokens, usage.input_audio_tokens)
    )


def _is_ambiguous(usage: TokenUsage, rates: TokenUsage) -> bool:
    """Tell whether it matters how many of the cached tokens were audio or image, and nobody said."""
    cache = usage.cached_tokens * rates.cached_tokens or usage.cache_write_tokens * rates.cache_write_tokens
    media = usage.input_audio_tokens * rates.input_audio_tokens or usage.input_image_tokens * rates.input_image_tokens
    return bool(cache and media and not usage.cached_audio_tokens)


# --- the published prices -----------------------------------------------------------------------

_OPENAI: Final = "openai"
_AZURE: Final = "azure"
#: Provider names of the OpenTelemetry conventions that the table does not recognise by itself.
_PROVIDER_IDS: Final = {"azure.ai.openai": _AZURE, "azure.ai.inference": _AZURE, "x_ai": "x-ai"}
#: Service tiers that cost the standard price; any other is priced only where the table lists it.
_STANDARD_TIERS: Final = frozenset({None, "auto", "default", "standard", "on_demand", "scale"})
_BATCH_TIER: Final = "batch"
#: "50 % lower costs" than the synchronous API, for every model that takes batches: OpenAI's guide to its Batch API.
#: Its price list has fine-tuned models apart, at other shares.
_BATCH_SHARE: Final = Decimal("0.5")
#: A fine-tuned model costs more than the model that it was made from.
_FINE_TUNED: Final = "ft:"
#: Charged for hosted tools, beside the tokens; usage does not tell them.
_TOOL_FEES: Final = ("searches_kcount", "code_executions_kcount")
_TOKENS: Final = "_mtok"
_REQUESTS: Final = "requests_kcount"


class Lookup(NamedTuple):
    """The question that a price answers; equal questions are looked up once."""

    model: str | None
    response_model: str | None
    provider: str | None
    base_url: str | None
    service_tier: str | None


def published_rates(lookup: Lookup, now: float) -> tuple[Rates | None, float]:
    """Find and compile the published price.

    :param now: seconds since 1970, because prices change on a date or with the hour.
    :return: the rates, None where unknown, and until when that holds, in seconds since 1970.
    """
    for provider, model in _found(lookup):
        own = any(model is each for each in provider.models)
        variants = [each for each in model.price_variants or () if own and each.when == _tier(lookup.service_tier)]
        moment = datetime.fromtimestamp(now, tz=UTC)
        # Prices change on whole minutes, and most of them never again.
        until = (now // 60 + 1) * 60 if _may_change([*_conditional(model), *variants], moment) else _NEVER
        if not model.prices:
            return None, until
        if lookup.service_tier in _STANDARD_TIERS:
            price = model.get_prices(moment)
        elif any(each.constraint is None or each.constraint.active(moment) for each in variants):
            price = model.get_prices(moment, _tier(lookup.service_tier))
        elif lookup.service_tier == _BATCH_TIER and provider.id in {_OPENAI, _AZURE} and not _is_tuned(model):
            return _compiled(model, model.get_prices(moment), share=_BATCH_SHARE), until
        else:
            return None, until
        return _compiled(model, price), until
    return None, _NEVER


def context_window(lookup: Lookup) -> int | None:
    """Return how many tokens the model takes in one call, input and output together; None where nobody says so."""
    for _, model in _found(lookup):
        return model.context_window
    return None


@cache
def table() -> "list[Provider]":
    """Import the price table: it takes a while, so not before it is needed. It is never fetched."""
    from genai_prices.data import providers

    return providers


def _found(lookup: Lookup) -> "Iterator[tuple[Provider, ModelInfo]]":
    hosted = _provider_at(lookup.base_url)
    for name in _names(lookup, hosted):
        for provider in _providers(name, hosted, lookup):
            model = provider.find_model(name, all_providers=table())
            if model is not None and name.startswith(_FINE_TUNED) <= model.id.startswith(_FINE_TUNED):
                yield provider, model


def _names(lookup: Lookup, hosted: "Provider | None") -> Iterator[str]:
    if lookup.response_model:
        yield lookup.response_model
        if hosted is not None and hosted.id == _AZURE:
            return  # what was asked for is the name of a deployment, which may be called like any model
    if lookup.model and lookup.model != lookup.response_model:
        yield lookup.model


def _providers(name: str, hosted: "Provider | None", lookup: Lookup) -> "Iterator[Provider]":
    """Yield whose prices may hold: the host's, the named provider's, or a gateway's best guess."""
    if hosted is not None:
        yield hosted
    elif lookup.provider is not None and (lookup.base_url is None or lookup.provider != _OPENAI):
        named = _provider_named(lookup.provider)
        if named is not None:
            yield named
    else:
        for each in table():
            if each.id == _OPENAI:
                yield each
        for each in table():
            if each.model_match is not None and each.model_match.is_match(name.lower()):
                yield each


def _provider_at(base_url: str | None) -> "Provider | None":
    if base_url is None:
        return None
    return next((each for each in table() if re.match(each.api_pattern, base_url)), None)


def _provider_named(name: str) -> "Provider | None":
    name = _PROVIDER_IDS.get(name, name).lower()
    exact = (each for each in table() if each.id == name)
    alike = (each for each in table() if each.provider_match is not None and each.provider_match.is_match(name))
    return next(exact, None) or next(alike, None)


def _tier(service_tier: str | None) -> dict[str, str]:
    """Return by what the table knows a tier."""
    if service_tier == _BATCH_TIER:
        return {"processing": _BATCH_TIER}
    return {"service_tier": service_tier} if service_tier is not None else {}


def _conditional(model: "ModelInfo") -> "list[ConditionalPrice]":
    return model.prices if isinstance(model.prices, list) else []


def _may_change(prices: "Sequence[ConditionalPrice | PriceVariant]", moment: datetime) -> bool:
    from genai_prices.types import StartDateConstraint

    constraints = [each.constraint for each in prices if each.constraint is not None]
    return not all(isinstance(each, StartDateConstraint) and each.active(moment) for each in constraints)


def _is_tuned(model: "ModelInfo") -> bool:
    return model.id.startswith(_FINE_TUNED)


def _compiled(model: "ModelInfo", price: "ModelPrice", *, share: Decimal = Decimal(1)) -> Rates | None:
    """Compile a price of the table; None where it bills by something that usage does not tell.

    :param share: of the price that is to be paid.
    """
    listed: dict[str, Decimal | TieredPrices] = {
        key: value for key, value in vars(price).items() if value is not None and not key.endswith(_TOOL_FEES)
    }
    if not listed and model.id.endswith(":free"):  # elsewhere an empty price means that nobody knows it
        return Rates({INPUT: Decimal(0), OUTPUT: Decimal(0)})
    per_request = listed.pop(_REQUESTS, Decimal(0))
    prices = {key.removesuffix(_TOKENS): value for key, value in listed.items() if key.endswith(_TOKENS)}
    if INPUT not in prices or len(prices) < len(listed) or not isinstance(per_request, Decimal):
        return None
    starts = sorted({tier.start for value in prices.values() for tier in getattr(value, "tiers", ())})
    return Rates(
        {key: _rate_above(value, -1) * share for key, value in prices.items()},
        tiers=[(start, {key: _rate_above(value, start) * share for key, value in prices.items()}) for start in starts],
        per_thousand_requests=per_request,
        # OpenAI takes less for them, and the table does not say how much.
        cache_is_unknown=_is_tuned(model) and CACHE_READ not in prices,
    )


def _rate_above(value: "Decimal | TieredPrices", start: int) -> Decimal:
    """Return the rate that holds for a call of more than ``start`` input tokens."""
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if tier.start <= start]
    return reached[-1] if reached else value.base
