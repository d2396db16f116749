"""Find the published prices."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from taskpilot_instrument._unit_prices import CACHE_READ, EXACT, INPUT, OUTPUT, Rates
from taskpilot_instrument.semconv import OPERATION_DECISION
from taskpilot_instrument.usage import AUDIO_SECONDS, INPUT_CHARACTERS, STORAGE_SEARCHES, WEB_SEARCHES

if TYPE_CHECKING:
    from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, PriceVariant, Provider, TieredPrices

_NEVER: Final = math.inf
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
_OPENAIS: Final = frozenset({_OPENAI, _AZURE})
#: "Data residency endpoints are charged a 10% uplift for models released on or after March 5, 2026": OpenAI's guide to
#: data residency. Which models are older stands in no table, and changes no more.
_REGIONAL: Final = re.compile(r"https://[a-z]{2}\.api\.openai\.com")
_REGIONAL_SHARE: Final = Decimal("1.1")
_OLDER: Final = re.compile(
    r"(ft:)?(gpt-[34]|gpt-5(-|$|\.[0-3])|gpt-(audio|oss|image-1)|gpt-realtime(-1|(-mini)?(-20|$))|o\d|chatgpt-4o|codex-mini"
    r"|computer-use|moderation|text-|tts-|whisper-|ada$|babbage|curie$|davinci)"
)
#: In the tables, the price list of an endpoint of OpenAI's that has its own.
_DECISIONS: Final = "openai-decisions"
_FREE: Final = ":free"
#: "The moderation endpoint is free to use": OpenAI's guide to it. The table leaves these out.
_FREE_MODELS: Final = ("omni-moderation", "text-moderation")
_NOTHING: Final = MappingProxyType({INPUT: Decimal(0), OUTPUT: Decimal(0)})
#: A fine-tuned model costs more than the model that it was made from.
_FINE_TUNED: Final = "ft:"
#: Charged for hosted tools, beside the tokens: they say nothing of calls that use none.
_TOOL_FEES: Final = ("searches_kcount", "code_executions_kcount")
#: Units that calls are counted in, and how many of them the listed price is for. The later of two is the finer one.
_UNITS: Final = {
    "web_searches_kcount": (WEB_SEARCHES, 1_000),
    "storage_searches_kcount": (STORAGE_SEARCHES, 1_000),
    "input_mchars": (INPUT_CHARACTERS, 1_000_000),
    "audio_hours": (AUDIO_SECONDS, 3_600),
    "input_audio_hours": (AUDIO_SECONDS, 3_600),
}
#: An hourly rate need not come to a whole number of anything by the second.
_FEE_DIGITS: Final = Context(prec=40)
#: These models of OpenAI's chat completions search before each answer, at a fee that the response does not tell.
_SEARCHING: Final = "-search-"
#: Perplexity's research model bills what it quotes, and the reasoning that it counts beside its output.
_CITATIONS: Final = "output_citation"
_TOKENS: Final = "_mtok"
_REQUESTS: Final = "requests_kcount"


class Lookup(NamedTuple):
    """The question that a price answers; equal questions are looked up once."""

    model: str | None
    response_model: str | None
    provider: str | None
    base_url: str | None
    service_tier: str | None
    operation: str | None = None


def published_rates(lookup: Lookup, now: float) -> tuple[Rates | None, float]:
    """Find and compile the published price.

    :param now: seconds since 1970, because prices change on a date or with the hour.
    :return: the rates, None where unknown, and until when that holds, in seconds since 1970.
    """
    if _is_free(lookup):
        return Rates(_NOTHING), _NEVER
    for provider, model in _found(lookup):
        own = any(model is each for each in provider.models)
        variants = [each for each in model.price_variants or () if own and each.when == _tier(lookup.service_tier)]
        moment = datetime.fromtimestamp(now, tz=UTC)
        # Prices change on whole minutes, and most of them never again.
        until = (now // 60 + 1) * 60 if _may_change([*_conditional(model), *variants], moment) else _NEVER
        if not model.prices:
            return None, until
        share = _share(lookup)
        if lookup.service_tier in _STANDARD_TIERS:
            price = model.get_prices(moment)
        elif any(each.constraint is None or each.constraint.active(moment) for each in variants):
            price = model.get_prices(moment, _tier(lookup.service_tier))
        elif lookup.service_tier == _BATCH_TIER and provider.id in _OPENAIS and not _is_tuned(model.id):
            return _compiled(model.get_prices(moment), model.id, share=share * _BATCH_SHARE), until
        else:
            return None, until
        beside = {OUTPUT: Decimal(0)} if provider.id == _DECISIONS else {}
        searches = _searches(provider, lookup)
        return _compiled(price, model.id, share=share, unlisted=beside, searches=searches), until
    return None, _NEVER


def _share(lookup: Lookup) -> Decimal:
    """Return which share of the listed price the endpoint takes."""
    is_regional = lookup.base_url is not None and _REGIONAL.match(lookup.base_url) is not None
    is_older = _OLDER.match(lookup.response_model or lookup.model or "") is not None
    return _REGIONAL_SHARE if is_regional and not is_older else Decimal(1)


def _is_free(lookup: Lookup) -> bool:
    name, hosted = lookup.response_model or lookup.model or "", _provider_at(lookup.base_url)
    sellers = _providers(name, hosted, lookup) if name.startswith(_FREE_MODELS) else ()
    return any(each.id == _OPENAI for each in sellers)


def _searches(provider: "Provider", lookup: Lookup) -> bool:
    return provider.id in _OPENAIS and _SEARCHING in (lookup.response_model or lookup.model or "")


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
        for seller in _providers(name, hosted, lookup):
            provider = _list_of(seller, lookup)
            if provider is None:
                continue
            model = provider.find_model(name, all_providers=table())
            if model is not None and name.startswith(_FINE_TUNED) <= model.id.startswith(_FINE_TUNED):
                yield provider, model


def _list_of(provider: "Provider", lookup: Lookup) -> "Provider | None":
    """Return the price list of a provider that holds for the endpoint; None where that one has none in the table."""
    if provider.id != _OPENAI or lookup.operation != OPERATION_DECISION:
        return provider
    return next((each for each in table() if each.id == _DECISIONS), None)


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
    if _REGIONAL.match(base_url) is not None:
        return _provider_named(_OPENAI)
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


def _is_tuned(model_id: str) -> bool:
    return model_id.startswith(_FINE_TUNED)


def _compiled(
    price: "ModelPrice",
    name: str,
    *,
    share: Decimal = Decimal(1),
    unlisted: Mapping[str, Decimal] = MappingProxyType({}),
    searches: bool = False,
) -> Rates | None:
    """Compile a price of the table; None where it bills by something that nobody counts.

    :param name: the model's, in the table.
    :param share: of the price that is to be paid.
    :param unlisted: rates of what the list leaves out.
    :param searches: True where each call pays for a search.
    """
    every: dict[str, Decimal | TieredPrices] = {key: value for key, value in vars(price).items() if value is not None}
    listed = {key: value for key, value in every.items() if not key.endswith(_TOOL_FEES)}
    if not listed and name.endswith(_FREE):  # elsewhere an empty price means that nobody knows it
        return Rates(_NOTHING)
    per_request = listed.pop(_REQUESTS, Decimal(0))
    fees = {
        unit: _FEE_DIGITS.divide(rate, Decimal(number))
        for key, (unit, number) in _UNITS.items()
        if isinstance(rate := every.get(key), Decimal)
    }
    prices: dict[str, Decimal | TieredPrices] = {
        key.removesuffix(_TOKENS): value for key, value in listed.items() if key.endswith(_TOKENS)
    }
    if INPUT not in prices or len(prices) < len(listed) or not isinstance(per_request, Decimal):
        return Rates({}, fees=fees) if fees else None
    search_fee = fees.get(WEB_SEARCHES) if _SEARCHING in name else None  # else it is the fee of another tool
    if searches and search_fee is not None:
        per_request += EXACT.multiply(search_fee, Decimal(1000))
    prices = {**unlisted, **prices}
    starts = sorted({tier.start for value in prices.values() for tier in getattr(value, "tiers", ())})
    return Rates(
        {key: _rate_above(value, -1) * share for key, value in prices.items()},
        tiers=[(start, {key: _rate_above(value, start) * share for key, value in prices.items()}) for start in starts],
        per_thousand_requests=per_request,
        fees=fees,
        is_partial=(searches and search_fee is None) or _CITATIONS in prices,
        # OpenAI takes less for them, and the table does not say how much.
        cache_is_unknown=_is_tuned(name) and CACHE_READ not in prices,
    )


def _rate_above(value: "Decimal | TieredPrices", start: int) -> Decimal:
    """Return the rate that holds for a call of more than ``start`` input tokens."""
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if tier.start <= start]
    return reached[-1] if reached else value.base
