"""Compile prices to whole numbers.

A compiled price has the shape of a usage: one coefficient for each count. The cost is the sum of the
products, exact because it is integer arithmetic in a unit fine enough for every rate of the model.
"""

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from operator import mul
from types import MappingProxyType
from typing import Final

from taskpilot_instrument.usage import TokenUsage

# A context of our own: the application may have set a precision that rounds, or traps that raise.
EXACT: Final = Context(prec=1000)
_PER_MILLION_EXPONENT: Final = -6
_PICO_DIGITS: Final = 12

# Keys of the price table, without their `_mtok`.
INPUT: Final = "input"
OUTPUT: Final = "output"
CACHE_READ: Final = "cache_read"
CACHE_WRITE: Final = "cache_write"
LONG_WRITE: Final = "cache_write_1h"
_INPUT_AUDIO: Final = "input_audio"
_OUTPUT_AUDIO: Final = "output_audio"
_CACHED_AUDIO: Final = "cache_audio_read"
_CACHED_IMAGE: Final = "cache_image_read"


class Rates:
    """The compiled price of one model.

    ``fees`` holds what it costs beside tokens: USD for one of each unit. ``is_partial`` says that each call also costs
    something that is not among the rates.

    A cached, written, reasoning or image token without a rate of its own is an ordinary input or output
    token, as the price table and the providers have it. Audio without a rate has no known price: it
    costs many times the text rate, also where the table leaves it out; so has a write to the cache that
    is kept longer, where other writes have a rate.
    """

    __slots__ = (
        "_base", "_cache_is_unknown", "_cached_audio_rated", "_cached_image_rated", "_dearest", "_exponent",
        "_input_audio_rated", "_long_write_rated", "_output_audio_rated", "_output_rated", "_per_request", "_pico",
        "_tiers", "fees", "is_partial",
    )  # fmt: skip

    def __init__(
        self,
        rates: Mapping[str, Decimal],
        *,
        tiers: Sequence[tuple[int, Mapping[str, Decimal]]] = (),
        per_thousand_requests: Decimal = Decimal(0),
        fees: Mapping[str, Decimal] = MappingProxyType({}),
        is_partial: bool = False,
        cache_is_unknown: bool = False,
    ) -> None:
        """Compile rates; ``input`` is among them, or the model bills no tokens.

        :param rates: USD per million tokens, by key.
        :param tiers: rates that hold for the whole call above so many input tokens, ascending.
        :param per_thousand_requests: USD per thousand calls, on top of the tokens.
        :param cache_is_unknown: True where cached tokens have a rate of their own that is not among these.
        """
        self.fees = fees
        self._cache_is_unknown = cache_is_unknown
        self.is_partial = is_partial
        every = [per_thousand_requests, *rates.values(), *(rate for _, tier in tiers for rate in tier.values())]
        shift = max(0, *(-int(rate.as_tuple().exponent) for rate in every))
        self._exponent = _PER_MILLION_EXPONENT - shift
        self._base = _coefficients(rates, shift) if rates else None
        self._tiers = tuple((start, _coefficients(tier, shift)) for start, tier in tiers)
        self._per_request = _whole(per_thousand_requests, shift) * 1000
        listed = ((-1, self._base), *self._tiers) if self._base is not None else ()
        self._dearest = tuple((start, _dearest(each)) for start, each in listed)
        #: How many pico-dollars the unit is, or how many units one pico-dollar is.
        digits = _PICO_DIGITS + self._exponent
        self._pico: tuple[int, int] = (10 ** max(0, digits), 10 ** max(0, -digits))
        self._output_rated = OUTPUT in rates
        self._input_audio_rated = _INPUT_AUDIO in rates
        self._output_audio_rated = _OUTPUT_AUDIO in rates
        self._cached_audio_rated = _CACHED_AUDIO in rates
        self._cached_image_rated = _CACHED_IMAGE in rates
        self._long_write_rated = LONG_WRITE in rates or CACHE_WRITE not in rates

    def cost(self, usage: TokenUsage) -> Decimal | None:
        """Return what the usage costs in USD; None where a part of it is unknown or has no rate."""
        given, made, cached, written, reasoning, *rare = usage
        rates = self._base
        if given is None or rates is None or cached + written > given or (cached and self._cache_is_unknown):
            return None
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
        return EXACT.scaleb(total, self._exponent)

    def most_pico(self, given: int, made: int, has_media: bool) -> int | None:  # noqa: FBT001 - given by place
        """Return the most that so many tokens may cost, in pico-dollars, rounded up; None without a rate.

        :param has_media: whether sound or pictures are among them.
        """
        if self._base is None or (made and not self._output_rated):
            return None
        most = 0
        for start, (text_in, text_out, media_in, media_out) in self._dearest:
            if given > start:
                cost = given * media_in + made * media_out if has_media else given * text_in + made * text_out
                if cost > most:
                    most = cost  # max() takes longer than all the rest
        times, parts = self._pico
        return -(-(most + self._per_request) * times // parts)

    def _covers(self, usage: TokenUsage, rates: TokenUsage) -> bool:
        """Tell whether the rates say what audio, image and long-kept tokens cost."""
        if (
            (usage.input_audio_tokens and not self._input_audio_rated)
            or (usage.output_audio_tokens and not self._output_audio_rated)
            or (usage.cached_audio_tokens and not self._cached_audio_rated)
            or (usage.cached_image_tokens and not self._cached_image_rated)
            or (usage.long_write_tokens and not self._long_write_rated)
        ):
            return False
        return _is_consistent(usage) and not _is_ambiguous(usage, rates)


def _coefficients(rates: Mapping[str, Decimal], shift: int) -> TokenUsage:
    """Return what one more of each count adds.

    Counts include one another, so a detail's coefficient is what it costs beyond the count it is part of.
    """
    whole = {key: _whole(rate, shift) for key, rate in rates.items()}
    given, made = whole[INPUT], whole.get(OUTPUT, 0)
    cached, written = whole.get(CACHE_READ, given), whole.get(CACHE_WRITE, given)
    audio = whole.get(_INPUT_AUDIO, given)
    image = whole.get("input_image", given)
    return TokenUsage(
        input_tokens=given,
        output_tokens=made,
        cached_tokens=cached - given,
        cache_write_tokens=written - given,
        reasoning_tokens=whole.get("output_reasoning", made) - made,
        input_audio_tokens=audio - given,
        output_audio_tokens=whole.get(_OUTPUT_AUDIO, made) - made,
        # Part of both the cached and the audio tokens, hence counted by both.
        cached_audio_tokens=whole.get(_CACHED_AUDIO, 0) - cached - audio + given,
        cached_image_tokens=whole.get(_CACHED_IMAGE, 0) - cached - image + given,
        input_image_tokens=image - given,
        output_image_tokens=whole.get("output_image", made) - made,
        long_write_tokens=whole.get(LONG_WRITE, written) - written,
    )


def _dearest(rates: TokenUsage) -> tuple[int, int, int, int]:
    """Return what a token costs at most: of text in and out, and where sound and pictures are among them."""
    given = rates.input_tokens or 0
    made = rates.output_tokens or 0
    written = rates.cache_write_tokens + max(0, rates.long_write_tokens)
    text_in = given + max(0, rates.cached_tokens, written)
    text_out = made + max(0, rates.reasoning_tokens)
    # No token is both a recording's and a picture's.
    heard = max(rates.input_audio_tokens, rates.input_audio_tokens + rates.cached_audio_tokens)
    seen = max(rates.input_image_tokens, rates.input_image_tokens + rates.cached_image_tokens)
    media_in = text_in + max(0, heard, seen)
    media_out = text_out + max(0, rates.output_audio_tokens, rates.output_image_tokens)
    return text_in, text_out, media_in, media_out


def _whole(rate: Decimal, shift: int) -> int:
    return int(EXACT.scaleb(rate, shift))


def _is_consistent(usage: TokenUsage) -> bool:
    """Tell whether no detail exceeds what it is part of; else the numbers mean something we do not know."""
    text = (usage.input_tokens or 0) - usage.input_audio_tokens - usage.input_image_tokens
    made = usage.output_tokens or 0
    cached_audio, cached_image = usage.cached_audio_tokens, usage.cached_image_tokens
    cached_text = usage.cached_tokens + usage.cache_write_tokens - cached_audio - cached_image if _is_told(usage) else 0
    return (
        text >= cached_text
        and made >= usage.reasoning_tokens
        and made >= usage.output_audio_tokens + usage.output_image_tokens
        and cached_audio <= usage.input_audio_tokens
        and cached_image <= usage.input_image_tokens
        and cached_audio + cached_image + usage.cached_text_tokens <= usage.cached_tokens
        and usage.long_write_tokens <= usage.cache_write_tokens
    )


def _is_told(usage: TokenUsage) -> bool:
    """Tell whether the provider says of what kind the cached tokens are."""
    return bool(usage.cached_audio_tokens or usage.cached_image_tokens or usage.cached_text_tokens)


def _is_ambiguous(usage: TokenUsage, rates: TokenUsage) -> bool:
    """Tell whether it matters how many of the cached tokens were audio or image, and nobody said."""
    cache = usage.cached_tokens * rates.cached_tokens or usage.cache_write_tokens * rates.cache_write_tokens
    media = usage.input_audio_tokens * rates.input_audio_tokens or usage.input_image_tokens * rates.input_image_tokens
    return bool(cache and media and not _is_told(usage))
