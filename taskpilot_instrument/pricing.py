"""Exact cost of token usage.

The user's own table comes first, then the published prices that ``genai-prices`` bundles, then the
user's ``"default"`` entry where there is one, marked as an estimate. What none of them prices is unknown.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from taskpilot_instrument import _forks
from taskpilot_instrument._money import add, multiply, total
from taskpilot_instrument._pricebook import Lookup, published_rates, table
from taskpilot_instrument._unit_prices import CACHE_READ, CACHE_WRITE, INPUT, LONG_WRITE, OUTPUT, Rates
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import COST_PARTIAL, OPERATION_IMAGE
from taskpilot_instrument.usage import AUDIO_SECONDS, INPUT_CHARACTERS, Beside, TokenUsage

if TYPE_CHECKING:
    from taskpilot_instrument._records import LLMCall

_log = logging.getLogger("taskpilot_instrument")

#: USD per million tokens: ``input`` and ``output``, and optionally ``cached_input`` and ``cache_write``.
ModelPricing = Mapping[str, float | Decimal]

_DEFAULT: Final = "default"
_REQUIRED: Final = {"input": INPUT, "output": OUTPUT}
_KEYS: Final = {**_REQUIRED, "cached_input": CACHE_READ, "cache_write": CACHE_WRITE}
_VALID: Final = ", ".join(_KEYS)
_FOREVER: Final = float("inf")
#: Names of models come from outside: whoever sends a new one with each call must not fill the memory.
_MAX_LOOKUPS: Final = 1024
_MAX_WARNINGS: Final = 256


class Price(NamedTuple):
    """What a call cost, and who says so.

    :param usd: exact USD.
    :param source: ``user``, ``genai-prices``, ``default`` for the user's catch-all price, an estimate, or ``partial``
        where something beside the tokens has no known price: the cost is a lower bound then.
    """

    usd: Decimal
    source: str


class PriceTable(MutableMapping[str, ModelPricing]):
    """The user's prices: model → USD per million tokens; a change holds from the next call on.

    ``table["my-model"] = {"input": 2.50, "output": 10.00}``; ``cached_input`` and ``cache_write`` are
    optional and else the input rate. A float means the decimal that it prints as.
    """

    def __init__(self, prices: Mapping[str, ModelPricing] | None = None) -> None:
        """Fill the table.

        :raises ConfigurationError: for an entry that is no price.
        """
        self._lock = _forks.lock()
        self._entries: dict[str, tuple[ModelPricing, Rates]] = {}
        #: Grows with each change, after the change is in force.
        self.version = 0
        self.update(prices or {})

    def __getitem__(self, model: str) -> ModelPricing:
        return self._entries[model][0]

    def __setitem__(self, model: str, prices: ModelPricing) -> None:
        rates = Rates(_rates(model, prices))
        entry = MappingProxyType(dict(prices)), rates
        with self._lock:
            # Replaced as a whole, so that readers need no lock.
            self._entries = {**self._entries, model: entry}
            self.version += 1

    def __delitem__(self, model: str) -> None:
        with self._lock:
            kept = dict(self._entries)
            del kept[model]
            self._entries = kept
            self.version += 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({ {model: dict(prices) for model, prices in self.items()} })"

    def rates(self, model: str | None) -> Rates | None:
        """Return the compiled price of a model, None where the table has none."""
        entry = self._entries.get(model) if model is not None else None
        return entry[1] if entry is not None else None


def _rates(model: object, prices: object) -> dict[str, Decimal]:
    """Check an entry as the user wrote it, and return its rates by the keys of the price table."""
    if not isinstance(model, str) or not model:
        raise ConfigurationError(f"MODEL_PRICING: a model is named by a non-empty string, not {model!r}")
    where = f"MODEL_PRICING[{model!r}]"
    if not isinstance(prices, Mapping):
        raise ConfigurationError(f"{where}: expected a mapping with {_VALID}, not {type(prices).__name__}")
    for key in prices:
        if key not in _KEYS:
            raise ConfigurationError(f"{where}: unknown key {key!r}; valid keys are {_VALID} (USD per 1M tokens)")
    for key in _REQUIRED:
        if key not in prices:
            raise ConfigurationError(f"{where}: {key!r} is missing; give USD per 1M tokens, 0 where it costs nothing")
    rates = {_KEYS[key]: _rate(f"{where}[{key!r}]", value) for key, value in prices.items()}
    if CACHE_WRITE in rates:
        rates[LONG_WRITE] = rates[CACHE_WRITE]  # the user has one rate for all of them
    return rates


def _rate(where: str, value: object) -> Decimal:
    if isinstance(value, float):
        rate = Decimal(float.__repr__(value))
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        rate = Decimal(value)
    else:
        raise ConfigurationError(f"{where}: expected a number of USD per 1M tokens, not {value!r}")
    if not rate.is_finite() or rate < 0:
        raise ConfigurationError(f"{where}: expected a finite number that is not negative, not {value!r}")
    return rate


#: The user's prices, for every :class:`PriceBook` that is given no other table.
MODEL_PRICING: Final = PriceTable()


#: The fields of a :class:`Lookup`, as plain as a key can be: it is made for each call.
_Key = tuple[str | None, str | None, str | None, str | None, str | None, str | None]
#: Billed where there are no tokens, and not beside them.
_IN_PLACE_OF_TOKENS: Final = frozenset({INPUT_CHARACTERS, AUDIO_SECONDS})


class _Answer(NamedTuple):
    """What a lookup found, and until when (seconds since 1970) it holds."""

    rates: Rates | None
    source: str
    until: float


class PriceBook:
    """Price calls: look each model up once, then multiply."""

    def __init__(
        self,
        prices: Mapping[str, ModelPricing] | None = None,
        *,
        deployments: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open the book.

        :param prices: the user's table instead of ``MODEL_PRICING``; a :class:`PriceTable` stays live.
        :param deployments: names that stand for models: deployment → model.
        :param now: seconds since 1970; some published prices depend on the time.
        :raises ConfigurationError: for an entry that is no price.
        """
        if prices is None:
            prices = MODEL_PRICING
        self._table = prices if isinstance(prices, PriceTable) else PriceTable(prices)
        self._deployments = dict(deployments or {})
        self._now = now
        self._cache: tuple[int, dict[_Key, _Answer]] = (self._table.version, {})
        self._warned: set[str] = set()

    def price_call(self, call: "LLMCall", /) -> Price | None:
        """Return the exact cost of an LLM call, None where it is unknown: then a warning says so, once for each model.

        Whoever only asks for a price is told it, or None, without a warning: no call counts without a cost then.
        """
        key = (call.model, call.response_model, call.provider, call.base_url, call.service_tier, call.operation)
        if call.beside is not None:
            return self._priced_with(call.beside, call.usage, key)
        if call.usage is None:
            return None
        price = self._priced(call.usage, key)
        if price is None:
            self._warn(key)
        return price

    def price(
        self,
        usage: TokenUsage,
        model: str | None,
        *,
        response_model: str | None = None,
        provider: str | None = None,
        base_url: str | None = None,
        service_tier: str | None = None,
    ) -> Price | None:
        """Return the exact cost of a usage, None where it is unknown.

        :param model: the model asked for.
        :param response_model: the model that answered, where the response names it.
        :param provider: whose prices hold, where ``base_url`` does not tell.
        :param base_url: where the call went; a host that nobody knows is taken for a gateway.
        :param service_tier: the tier that served the call.
        """
        return self._priced(usage, (model, response_model, provider, base_url, service_tier, None))

    def rates(self, model: str) -> Rates | None:
        """Return the compiled price of a model; None where it is not known."""
        return self._answer((model, None, None, None, None, None)).rates

    def most_pico(self, call: "LLMCall", input_tokens: int, output_tokens: int, /) -> int | None:
        """Return the most that so many tokens may cost, in pico-dollars: no discount, and each at its dearest rate.

        :return: None where the price is unknown.
        """
        most = call.most
        tier, has_media = (None, False) if most is None else (most.service_tier, most.has_media)
        rates = self._answer((call.model, None, call.provider, call.base_url, tier, call.operation))[0]
        return None if rates is None else rates.most_pico(input_tokens, output_tokens, has_media)

    def _priced(self, usage: TokenUsage, key: _Key) -> Price | None:
        answer = self._answer(key)
        usd = None if answer.rates is None else answer.rates.cost(usage)
        return None if usd is None else Price(usd, answer.source)

    def _priced_with(self, beside: Beside, usage: TokenUsage | None, key: _Key) -> Price | None:
        """Price a call that is billed by more than its tokens, and note what the rest comes to."""
        answer = self._answer(key)
        tokens = None if usage is None or answer.rates is None else answer.rates.cost(usage)
        if answer.rates is None or (usage is not None and tokens is None):
            self._warn(key)
        if usage is not None and tokens is None:
            return None
        fees = answer.rates.fees if answer.rates is not None else {}
        amounts = [
            None if unit not in fees else multiply(fees[unit], Decimal(count))
            for unit, count in beside.units.items()
            if usage is None or unit not in _IN_PLACE_OF_TOKENS
        ]
        for model, counts in beside.models:
            its_key = (model, None, *key[2:4], None, OPERATION_IMAGE)
            price = self._priced(counts, its_key)
            if price is None:
                self._warn(its_key)
            amounts.append(None if price is None else price.usd)
        known = [usd for usd in amounts if usd is not None]
        if len(known) < len(amounts):
            self._warn(key)
        if tokens is None and not known:
            return None
        beside.usd = total(known)
        usd = beside.usd if tokens is None else add(tokens, beside.usd)
        return Price(usd, answer.source if len(known) == len(amounts) else COST_PARTIAL)

    def _answer(self, key: _Key) -> _Answer:
        since, cache = self._cache
        if since != self._table.version:
            # Read the version first: a change in between starts one more cache, and no stale one.
            since, cache = self._cache = (self._table.version, {})
        answer = cache.get(key)
        if answer is None or answer.until <= self._now():
            if len(cache) >= _MAX_LOOKUPS:
                cache.clear()
            answer = cache[key] = self._look_up(Lookup(*key))
        return answer

    def _look_up(self, lookup: Lookup) -> _Answer:
        asked = lookup.model, lookup.response_model
        model, response_model = (self._deployments.get(name, name) if name is not None else None for name in asked)
        lookup = lookup._replace(model=model, response_model=response_model)
        for name in (*asked, model, response_model):  # a price of the deployment itself comes first
            if name != _DEFAULT and (own := self._table.rates(name)) is not None:
                return _Answer(own, "user", _FOREVER)
        rates, until = published_rates(lookup, self._now())
        if rates is not None:
            return _Answer(rates, COST_PARTIAL if rates.is_partial else "genai-prices", until)
        return _Answer(self._table.rates(_DEFAULT), _DEFAULT, until)

    def _warn(self, key: _Key) -> None:
        """Say that a model has no price, or that its price does not say what all of a usage costs."""
        named = key[1] or key[0] or ""
        model = self._deployments.get(named, named)
        if not self._is_news(model):
            return
        if self._answer(key).rates is None:
            _log.warning(
                "taskpilot_instrument: no price is known for model %.100r; its calls count without a cost. "
                'Set MODEL_PRICING[model] = {"input": …, "output": …} in USD per 1M tokens.',
                model,
            )
        else:
            _log.warning(
                "taskpilot_instrument: the price of model %.100r does not cover all that a call used, such as audio, "
                "seconds or a hosted tool; such calls count without a cost, or with a part of it.",
                model,
            )

    def _is_news(self, model: str) -> bool:
        if model in self._warned or len(self._warned) >= _MAX_WARNINGS:
            return False
        self._warned.add(model)
        return True


#: The book that everything shares unless it is given a table of its own, so that a model is warned of once.
BOOK: Final = PriceBook()


def calculate_cost(
    input_tokens: int,
    output_tokens: int,
    model: str,
    *,
    cached_tokens: int = 0,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
    provider: str | None = None,
) -> float | None:
    """Return what a call costs in USD, None where the price is unknown.

    :param input_tokens: all input tokens, the cached and the written ones included.
    :param output_tokens: all output tokens, the reasoning ones included.
    :param cached_tokens: input tokens that came from the cache.
    :param cache_write_tokens: input tokens that were written to the cache.
    :param reasoning_tokens: output tokens spent on reasoning; they cost what output costs.
    :param provider: whose price to take, such as ``azure``; else OpenAI's, else whoever has the model.
    :raises ConfigurationError: for counts that are no counts, or a part that exceeds its whole.
    """
    counts = {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": cached_tokens,
        "cache_write_tokens": cache_write_tokens,
        "reasoning_tokens": reasoning_tokens,
    }
    for name, count in counts.items():
        if type(count) is not int or count < 0:
            raise ConfigurationError(f"{name}: expected a number of tokens that is not negative, not {count!r}")
    if cached_tokens + cache_write_tokens > input_tokens:
        raise ConfigurationError(
            f"cached_tokens + cache_write_tokens ({cached_tokens} + {cache_write_tokens}) are part of input_tokens "
            f"({input_tokens}) and cannot exceed them"
        )
    if reasoning_tokens > output_tokens:
        raise ConfigurationError(
            f"reasoning_tokens ({reasoning_tokens}) are part of output_tokens ({output_tokens}) and cannot exceed them"
        )
    price = BOOK.price(TokenUsage(**counts), model, provider=provider)
    return float(price.usd) if price is not None else None


def warm() -> None:
    """Import the price table now, so that the first call does not wait for it."""
    table()


def price_table_date() -> str:
    """Return which published price table is in use, such as ``genai-prices 0.2.3``; it carries no other date."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"
