"""Our prices of OpenAI's models beside those of a second source, litellm's table; for development.

The comparison runs where litellm is installed too. What only we have a rate for is no difference; where only they have
one, or both have different ones, the tables below say why. A difference that is not in them fails, and so does one
that is in them and no more.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from taskpilot_instrument.pricing import PriceBook
from taskpilot_instrument.usage import TokenUsage

_TABLE: Final = "model_prices_and_context_window_backup.json"
_PROVIDERS: Final = frozenset({"openai", "text-completion-openai"})
_MILLION: Final = Decimal(1_000_000)
#: When both tables were read; some prices of ours depend on the date. They were genai-prices 0.2.3, litellm 1.110.2.
_NOW: Final = 1_795_600_000.0
_TEXT: Final = ("input", "cached", "written", "output")
_SHORT: Final = 1_000
#: Beyond the bound at which OpenAI's long-context rates begin.
_LONG: Final = 300_000
_TIERS: Final = {None: "", "flex": "_flex", "priority": "_priority", "batch": "_batches", "ultrafast": "_ultrafast"}


class Probe(NamedTuple):
    """One rate: what the usage costs beyond the usage without it, by the million.

    :param theirs: what the rate is called in the other table.
    """

    theirs: str
    usage: TokenUsage
    without: TokenUsage = TokenUsage(0, 0)
    tier: str | None = None

    def ours(self, book: PriceBook, model: str) -> Decimal | None:
        """Return USD for a million; None where it is unknown."""
        whole, rest = (_cost(book, model, usage, self.tier) for usage in (self.usage, self.without))
        tokens = (self.usage.input_tokens or 0) + (self.usage.output_tokens or 0)
        tokens -= (self.without.input_tokens or 0) + (self.without.output_tokens or 0)
        return None if whole is None or rest is None else (whole - rest) / tokens * _MILLION


def _cost(book: PriceBook, model: str, usage: TokenUsage, tier: str | None) -> Decimal | None:
    price = book.price(usage, model, provider="openai", service_tier=tier)
    return None if price is None else price.usd


def _probes() -> Iterator[tuple[str, Probe]]:
    for tier, suffix in _TIERS.items():
        for size, given, above in (("", _SHORT, ""), ("long ", _LONG, "_above_272k_tokens")):
            name, end = f"{tier} {size}" if tier else size, f"{above}{suffix}"
            cached, written = TokenUsage(given, 0, given), TokenUsage(given, 0, 0, given)
            yield f"{name}input", Probe(f"input_cost_per_token{end}", TokenUsage(given, 0), tier=tier)
            yield f"{name}cached", Probe(f"cache_read_input_token_cost{end}", cached, tier=tier)
            yield f"{name}written", Probe(f"cache_creation_input_token_cost{end}", written, tier=tier)
            made = TokenUsage(given, _SHORT)
            yield f"{name}output", Probe(f"output_cost_per_token{end}", made, TokenUsage(given, 0), tier)
    n = _SHORT
    yield "audio in", Probe("input_cost_per_audio_token", TokenUsage(n, 0, input_audio_tokens=n))
    yield "audio out", Probe("output_cost_per_audio_token", TokenUsage(0, n, output_audio_tokens=n))
    cached_audio = TokenUsage(n, 0, n, input_audio_tokens=n, cached_audio_tokens=n)
    yield "audio cached", Probe("cache_read_input_audio_token_cost", cached_audio)
    yield "image in", Probe("input_cost_per_image_token", TokenUsage(n, 0, input_image_tokens=n))
    yield "image out", Probe("output_cost_per_image_token", TokenUsage(0, n, output_image_tokens=n))


PROBES: Final = dict(_probes())

#: Where both have a rate: ours and theirs, USD for a million, and why they differ.
DIFFERENT: Final[dict[tuple[str, str], tuple[str, str, str]]] = {
    **{
        (model, "audio in"): ("6", "2.5", "they give the text rate; OpenAI lists audio apart")
        for model in ("gpt-4o-transcribe", "gpt-4o-transcribe-diarize")
    },
    ("gpt-4o-mini-transcribe", "audio in"): ("3", "1.25", "they give the text rate; OpenAI lists audio apart"),
    ("gpt-4o-mini-tts", "output"): ("12", "10", "its output is audio, at 12 in both tables"),
    **{
        (model, "cached"): ("2.5", "1.25", "OpenAI lists no rate of its own for its cached tokens")
        for model in ("gpt-4o-search-preview", "gpt-4o-search-preview-2025-03-11")
    },
    ("ft:gpt-4o-2024-11-20", "written"): ("3.75", "1.875", "they give the rate of reading; writing costs no more"),
    ("chatgpt-image-latest", "batch cached"): ("0.625", "0.63", "they round half of 1.25"),
    **{
        ("gpt-5.6-cyber", f"long {kind}"): (ours, theirs, "the bundled table has no long-context tier for it")
        for kind, ours, theirs in (
            ("input", "12.5", "25"),
            ("cached", "1.25", "2.5"),
            ("written", "15.625", "31.25"),
            ("output", "75", "112.5"),
        )
    },
    **{
        (model, f"batch long {kind}"): (ours, theirs, "the bundled table has no long-context tier for its batches")
        for model in ("gpt-5.5-pro", "gpt-5.5-pro-2026-04-23")
        for kind, ours, theirs in (("input", "15", "30"), ("output", "90", "135"))
    },
}  # fmt: skip

#: Where only they have one, so that our cost is unknown: by reason, the kinds of each model, all of them for ``*``.
UNKNOWN: Final[dict[str, dict[str, str]]] = {
    "the bundled table does not have the model yet": {
        "daybreak-blue-latest": "*",
        "daybreak-red-latest": "*",
        "gpt-daybreak-blue-latest": "*",
        "gpt-daybreak-red-latest": "*",
        "gpt-5.5-cyber-preview": "*",
        "gpt-6-astra-law": "*",
        "gpt-image-2.6-flare": "*",
        "gpt-image-2.6-sunburst": "*",
    },
    "the bundled table has the model without the date only": {
        "gpt-4o-mini-transcribe-2025-03-20": "*",
        "gpt-4o-mini-transcribe-2025-12-15": "*",
        "gpt-4o-mini-tts-2025-03-20": "*",
        "gpt-4o-mini-tts-2025-12-15": "*",
        "gpt-5-search-api-2025-10-14": "*",
    },
    "the bundled table has the fine-tuned models of gpt-3.5-turbo and gpt-4o only": {
        "ft:babbage-002": "*",
        "ft:davinci-002": "*",
        "ft:gpt-4-0613": "*",
        "ft:gpt-4.1-2025-04-14": "*",
        "ft:gpt-4.1-mini-2025-04-14": "*",
        "ft:gpt-4.1-nano-2025-04-14": "*",
        "ft:o4-mini-2025-04-16": "*",
    },
    "the bundled table has neither cached tokens nor batches of fine-tuned models": {
        "ft:gpt-4o-2024-08-06": "cached, batch input, batch cached, batch output",
        "ft:gpt-4o-mini-2024-07-18": "cached, batch cached",
    },
    "the bundled table has no rate for the model's audio, which is not the text rate": {
        "gpt-4o-audio-preview-2024-12-17": "audio in, audio out",
        "gpt-4o-audio-preview-2025-06-03": "audio in, audio out",
        "gpt-4o-mini-audio-preview-2024-12-17": "audio in, audio out",
        "gpt-4o-mini-tts": "audio out",
    },
    "the bundled table does not have the tier": {
        "gpt-6-astra": ", ".join(f"ultrafast {size}{kind}" for size in ("", "long ") for kind in _TEXT),
        "gpt-6.1-sol": ", ".join(f"ultrafast {size}{kind}" for size in ("", "long ") for kind in _TEXT),
    },
}


def _pairs(theirs: dict[str, Any]) -> Iterator[tuple[str, str, Decimal | None, Decimal]]:
    """Yield model, kind, our rate and theirs, wherever they have one."""
    book = PriceBook({}, now=lambda: _NOW)
    for model, listed in theirs.items():
        if not isinstance(listed, dict) or listed.get("litellm_provider") not in _PROVIDERS or "/" in model:
            continue
        for kind, probe in PROBES.items():
            rate = listed.get(probe.theirs)
            if rate is not None and not (listed.get("mode") == "embedding" and "output" in kind):
                yield model, kind, probe.ours(book, model), Decimal(rate) * _MILLION


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """The other table, read and not imported: importing it may fetch a newer one."""
    spec = find_spec("litellm")
    if spec is None or spec.origin is None:
        pytest.skip("not installed: litellm, the second price source")
    text = (Path(spec.origin).parent / _TABLE).read_text()
    table: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return table


def test_where_both_have_a_price_it_is_the_same_but_for_known_reasons(theirs: dict[str, Any]) -> None:
    """Input, cached, written, output, audio and image tokens, tiers, batches, long contexts."""
    pairs = [pair for pair in _pairs(theirs) if pair[2] is not None]
    found = {(model, kind): (ours, their) for model, kind, ours, their in pairs if ours != their}
    known = {place: (Decimal(ours), Decimal(their)) for place, (ours, their, _why) in DIFFERENT.items()}
    assert known == found
    assert 1_000 < len(pairs)


def test_what_only_they_can_price_is_unknown_for_known_reasons(theirs: dict[str, Any]) -> None:
    """Each model or kind of usage that has no price with us is listed, with the reason."""
    found: dict[str, set[str]] = {}
    for model, kind, ours, _their in _pairs(theirs):
        if ours is None:
            found.setdefault(model, set()).add(kind)
    known = {model: set(kinds.split(", ")) for models in UNKNOWN.values() for model, kinds in models.items()}
    assert known == {model: {"*"} if known.get(model) == {"*"} else kinds for model, kinds in found.items()}


def test_writes_for_twelve_hours_are_unknown_while_only_they_have_a_rate(theirs: dict[str, Any]) -> None:
    """They list twice the rate of other writes, wherever they list one; the bundled table has none to check it by."""
    book = PriceBook({}, now=lambda: _NOW)
    kept = TokenUsage(_SHORT, 0, 0, _SHORT, long_write_tokens=_SHORT)
    long, short = "cache_creation_input_token_cost_above_12hr", "cache_creation_input_token_cost"
    models = {name: each for name, each in theirs.items() if isinstance(each, dict) and long in each}
    own = {name: each for name, each in models.items() if each.get("litellm_provider") in _PROVIDERS}
    assert {None} == {_cost(book, name, kept, None) for name in own}
    assert {2} == {each[long] / each[short] for each in own.values()}


def test_what_costs_more_in_a_region_there_does_so_here(theirs: dict[str, Any]) -> None:
    """They list a factor for each model; here older models are told from newer ones by their names."""
    book, usage, key = (
        PriceBook({}, now=lambda: _NOW),
        TokenUsage(_SHORT, 0),
        "regional_processing_uplift_multiplier_eu",
    )
    own = {name: each for name, each in theirs.items() if isinstance(each, dict) and key in each}
    found = {}
    for name in own:
        world, region = (
            book.price(usage, name, base_url=f"https://{host}/v1/") for host in ("api.openai.com", "eu.api.openai.com")
        )
        if world is not None and region is not None:
            found[name] = region.usd / world.usd
    assert {name: Decimal(own[name][key]) for name in found} == found
    assert 20 < len(found)


def test_no_model_is_listed_twice() -> None:
    """A reason stands for each model once, so that none hides another."""
    models = [model for models in UNKNOWN.values() for model in models]
    assert sorted(set(models)) == sorted(models)
