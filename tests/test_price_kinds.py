"""What a price has to know beyond the model's name: the deployment behind it, the tier, and each kind of usage."""

import logging
from decimal import Decimal
from typing import Any

import openai
import pytest
from mock_openai import completion, httpx, json_response, sync_client

from taskpilot_instrument._records import LLMCall
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.pricing import PriceBook
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.testing import capture
from taskpilot_instrument.usage import TokenUsage, usage_from

MESSAGES: Any = [{"role": "user", "content": "hello"}]
#: 2026-11-25, so that no price changes under the tests.
NOW = 1_795_600_000.0
COST = Decimal("0.0000525")


def book(**more: Any) -> PriceBook:
    """Return a book without prices of the user's."""
    return PriceBook({}, now=lambda: NOW, **more)


def usd(usage: TokenUsage, model: str, tier: str | None = None) -> Decimal | None:
    """Return what the published price makes of a usage of OpenAI's."""
    price = book().price(usage, model, provider="openai", service_tier=tier)
    return None if price is None else price.usd


def dollars(terms: str) -> Decimal:
    """Return what counts times rates, USD for a million, come to."""
    pairs = [each.split("*") for each in terms.split(" + ")]
    return sum((Decimal(count) * Decimal(rate) for count, rate in pairs), Decimal(0)) / 1_000_000


# --- tiers and names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        (None, "1.125 0.1125 3.75"),
        ("default", "1.125 0.1125 3.75"),
        ("flex", "0.5625 0.05625 1.875"),
        ("batch", "0.5625 0.05625 1.875"),
        ("priority", "2.25 0.225 7.5"),
        ("fast", "2.25 0.225 7.5"),
    ],
)
def test_each_tier_at_its_rate(tier: str | None, expected: str) -> None:
    """Ordinary and cached input and output cost what the tier that served the call takes."""
    usages = TokenUsage(900_000, 0), TokenUsage(900_000, 0, cached_tokens=900_000), TokenUsage(0, 375_000)
    assert [Decimal(each) for each in expected.split()] == [usd(usage, "gpt-5", tier) for usage in usages]


@pytest.mark.parametrize(
    ("model", "tier", "share"),
    [
        ("gpt-5.4", None, "1.1"),
        ("gpt-5.4-mini-2026-03-17", "flex", "1.1"),
        ("gpt-5.6-terra", "batch", "1.1"),
        ("gpt-6-luna", None, "1.1"),
        ("gpt-realtime-2", None, "1.1"),
        ("gpt-5", None, "1"),
        ("gpt-5-mini-2025-08-07", "batch", "1"),
        ("gpt-5.3-codex", "priority", "1"),
        ("gpt-4o-mini", None, "1"),
        ("gpt-realtime", None, "1"),
        ("o4-mini", "flex", "1"),
        ("text-embedding-3-small", None, "1"),
        ("ft:gpt-4o-2024-08-06:org::id", None, "1"),
    ],
)
def test_data_that_stays_in_a_region_costs_more_with_newer_models(model: str, tier: str | None, share: str) -> None:
    """OpenAI's hosts of a region take a tenth more for models from March 2026 on, and no more for older ones."""
    usage = TokenUsage(1000, None if "embedding" in model else 1000)
    prices = [
        book().price(usage, model, provider="openai", base_url=f"https://{host}/v1/", service_tier=tier)
        for host in ("api.openai.com", "eu.api.openai.com", "us.api.openai.com")
    ]
    found = [None if price is None else price.usd for price in prices]
    assert found[0] is not None
    assert [found[0] * Decimal(share)] * 2 == found[1:]


def test_a_host_of_a_region_has_models_of_openais_only() -> None:
    """It is no gateway, whose models may be anybody's."""
    host = "https://eu.api.openai.com/v1/"
    assert book().price(TokenUsage(1, 1), "claude-sonnet-4-0", provider="openai", base_url=host) is None


def test_a_tier_that_nobody_lists_is_unknown() -> None:
    """The standard price would be wrong."""
    assert usd(TokenUsage(1, 1), "gpt-5", "ultrafast") is None


@pytest.mark.parametrize("tier", [None, "flex", "batch"])
def test_a_long_context_costs_more_from_its_first_token(tier: str | None) -> None:
    """Beyond the bound all tokens of the call are at the higher rate, the output's included, in each tier."""
    share = Decimal(1) if tier is None else Decimal("0.5")
    assert Decimal("0.68") * share == usd(TokenUsage(272_000, 0), "gpt-5.4", tier)
    assert Decimal("1.5") * share == usd(TokenUsage(300_000, 0), "gpt-5.4", tier)
    assert Decimal("3.75") * share == usd(TokenUsage(300_000, 100_000), "gpt-5.4", tier)


@pytest.mark.parametrize(
    ("name", "dated"),
    [("gpt-4o", "gpt-4o-2024-08-06"), ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"), ("gpt-5", "gpt-5-2025-08-07")],
)
def test_a_dated_name_has_the_price_of_the_model(name: str, dated: str) -> None:
    """The response names a version; its price is the model's."""
    usage = TokenUsage(1000, 1000, cached_tokens=500)
    assert usd(usage, name) == usd(usage, dated) is not None


def test_what_the_table_does_not_say_of_fine_tuned_models_is_unknown() -> None:
    """Cached tokens and batches have rates of their own there, that are neither the full nor half the others."""
    tuned = "ft:gpt-4o-2024-08-06:org::id"
    assert Decimal("3.75") == usd(TokenUsage(1_000_000, 0), tuned)
    assert usd(TokenUsage(1_000_000, 0, cached_tokens=1), tuned) is None
    assert usd(TokenUsage(1_000_000, 0), tuned, "batch") is None


@pytest.mark.parametrize(
    "name", ["ft:gpt-4-0613:org::id", "ft:o4-mini-2025-04-16:org::id", "ft:gpt-4.1-2025-04-14:claude-opus-4-1::id"]
)
@pytest.mark.parametrize("provider", [None, "openai", "azure"])
def test_a_fine_tuned_model_has_no_price_of_another(name: str, provider: str | None) -> None:
    """Neither that of the model beneath it, nor of one that its owner's name brings to mind."""
    assert book().price(TokenUsage(1000, 1000), name, provider=provider) is None


@pytest.mark.parametrize(
    ("provider", "model", "tier", "share"),
    [
        ("azure", "gpt-5", "batch", "0.5"),
        ("azure", "gpt-5", "priority", None),
        ("azure", "gpt-5", "flex", None),
        ("anthropic", "claude-sonnet-5", "batch", "0.5"),
        ("anthropic", "claude-3-haiku", "batch", None),
        ("x-ai", "grok-3", "batch", None),
        ("google", "gemini-2.5-flash", "batch", "0.5"),
    ],
)
def test_a_tier_is_priced_by_who_serves_it(provider: str, model: str, tier: str, share: str | None) -> None:
    """Batches of OpenAI's models cost half, also at Azure; any other tier is unknown unless the provider lists it."""
    usage = TokenUsage(1000, 1000)
    usual, found = (book().price(usage, model, provider=provider, service_tier=each) for each in (None, tier))
    assert usual is not None
    assert (None if share is None else usual.usd * Decimal(share)) == (None if found is None else found.usd)


def test_reasoning_costs_what_output_costs() -> None:
    """It is part of the output, and not billed beside it."""
    assert usd(TokenUsage(10, 500), "gpt-5") == usd(TokenUsage(10, 500, reasoning_tokens=400), "gpt-5") is not None


# --- the cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (TokenUsage(1000, 0, 0, 1000, long_write_tokens=400), "600*3.75 + 400*6"),
        (TokenUsage(1000, 0, 0, 1000, long_write_tokens=1001), None),
    ],
)
def test_what_is_kept_longer_in_the_cache_costs_more(given: TokenUsage, expected: str | None) -> None:
    """Writes for an hour have a rate of their own; more of them than writes at all mean something unknown."""
    price = book().price(given, "claude-sonnet-4-0", provider="anthropic")
    assert (None if expected is None else dollars(expected)) == (None if price is None else price.usd)


def test_longer_writes_without_a_rate_are_unknown() -> None:
    """OpenAI takes more for twelve hours, and the table does not say how much."""
    assert Decimal("0.0025") == usd(TokenUsage(1000, 0, 0, 1000), "gpt-5.6-terra")
    assert usd(TokenUsage(1000, 0, 0, 1000, long_write_tokens=1), "gpt-5.6-terra") is None


def test_writes_cost_what_the_user_says_however_long_they_are_kept() -> None:
    """The user's own table has one rate for them."""
    for more, expected in (({}, "1000*2"), ({"cache_write": 3}, "1000*3")):
        prices = PriceBook({"mine": {"input": 2, "output": 8, **more}})
        price = prices.price(TokenUsage(1000, 0, 0, 1000, long_write_tokens=400), "mine")
        assert (dollars(expected), "user") == price


# --- usage that a price does not cover ----------------------------------------------------------

AUDIO: dict[str, Any] = {
    "prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200,
    "prompt_tokens_details": {"audio_tokens": 100, "cached_tokens": 0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("cached", "expected"),
    [
        ({}, None),
        ({"cached_text_tokens": 64}, "68*4 + 64*.4 + 20*32 + 10*5"),
        ({"cached_text_tokens": 44, "cached_audio_tokens": 20}, "88*4 + 44*.4 + 20*.4 + 10*5"),
        ({"cached_text_tokens": 54, "cached_image_tokens": 10}, "78*4 + 54*.4 + 20*32 + 10*.5"),
        (
            {"cached_text_tokens": 34, "cached_audio_tokens": 20, "cached_image_tokens": 10},
            "98*4 + 34*.4 + 20*.4 + 10*.5",
        ),
        ({"cached_text_tokens": 60, "cached_audio_tokens": 20}, None),
        ({"cached_image_tokens": 11}, None),
    ],
)
def test_cached_sound_and_pictures_have_rates_of_their_own(cached: dict[str, int], expected: str | None) -> None:
    """What is cached of a realtime session is priced by kind where the provider tells the kind, and else unknown."""
    usage = TokenUsage(162, 0, 64, input_audio_tokens=20, input_image_tokens=10, **cached)
    assert (None if expected is None else dollars(expected)) == usd(usage, "gpt-realtime")


@pytest.mark.parametrize(
    ("model", "usage"),
    [
        ("gpt-audio", TokenUsage(100, 0, 40, input_audio_tokens=60, cached_audio_tokens=10)),
        ("gpt-4o", TokenUsage(100, 0, 40, input_image_tokens=60, cached_image_tokens=10)),
    ],
)
def test_cached_sound_and_pictures_without_a_rate_are_unknown(model: str, usage: TokenUsage) -> None:
    """They cost neither what other cached tokens do, nor what they cost uncached."""
    assert usd(usage, model) is None


def test_pictures_that_cost_what_text_costs_may_be_cached_untold() -> None:
    """Which of the cached tokens were text plays no part where all kinds cost the same."""
    assert dollars("40*2.5 + 60*1.25") == usd(TokenUsage(100, 0, 60, input_image_tokens=90), "gpt-4o")


@pytest.mark.openai
def test_a_moderation_is_free(caplog: pytest.LogCaptureFixture) -> None:
    """OpenAI takes nothing for it: it has a price, which is nothing, and a call is not counted as one without."""
    assert {0} == {usd(TokenUsage(1_000, 0), f"{kind}-moderation-latest") for kind in ("omni", "text")}
    elsewhere = book().price(TokenUsage(1_000, 0), "omni-moderation-latest", base_url="https://api.mistral.ai/v1")
    assert elsewhere is None
    caplog.clear()
    answer = b'{"id": "modr-1", "model": "omni-moderation-latest", "results": []}'
    with capture() as captured, caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        sync_client(lambda _: json_response(answer)).moderations.create(input="hello")
        tags = captured.tags("moderation")
        assert 0 == captured.golden_signals().sample.unpriced
    assert (None, None) == (tags.get("cost_source"), tags.get("cost_usd"))
    assert [] == caplog.records


@pytest.mark.openai
def test_what_has_no_rate_is_unknown_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Audio tokens of a model whose price lists none: no cost, the tag that says so, a counter, and one warning."""
    own_table = {"another": {"input": 1, "output": 1}}  # of the shared one another test may have been warned
    with capture(pricing=own_table) as captured, caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        client = sync_client(lambda _: json_response(completion(model="gpt-4o-2024-08-06", usage=AUDIO)))
        for _ in range(3):
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        tags = [dict(span.attributes or {}) for span in captured.spans]
        text = captured.prometheus_text
        assert 0.0 == captured.golden_signals().cost_coverage
    assert [("unknown", None)] * 3 == [(each["cost_source"], each.get("cost_usd")) for each in tags]
    assert 'taskpilot_llm_unpriced_calls_total{model="gpt-4o"} 3.0' in text
    said = [record.getMessage() for record in caplog.records if "does not cover" in record.getMessage()]
    assert 1 == len(said)
    assert "gpt-4o-2024-08-06" in said[0]


def test_a_model_that_bills_what_it_quotes_costs_at_least_its_tokens() -> None:
    """Perplexity's research counts quotes, reasoning and searches in words of its own, which are not read."""
    usage = usage_from({"prompt_tokens": 33, "completion_tokens": 7163, "total_tokens": 7196, "citation_tokens": 20016})
    assert usage is not None
    found = book().price(usage, "sonar-deep-research", base_url="https://api.perplexity.ai")
    assert (dollars("33*2 + 7163*8"), "partial") == found


def test_a_model_is_warned_of_once_whatever_it_lacks(caplog: pytest.LogCaptureFixture) -> None:
    """Each model has one warning for what its price does not cover, and one for having none; never both."""
    prices = book()
    with caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        for _ in range(2):
            for model, usage in (
                ("gpt-4o", TokenUsage(10, 10, input_audio_tokens=5)),
                ("gpt-4o", TokenUsage(10, 10, output_audio_tokens=5)),
                ("made-up", TokenUsage(10, 10)),
                ("gpt-4o", TokenUsage(10, 10)),
            ):
                call = LLMCall("chat", model)
                call.usage = usage
                prices.price_call(call)
    assert [True, False] == ["does not cover" in record.getMessage() for record in caplog.records]


# --- deployments --------------------------------------------------------------------------------


def azure(body: bytes) -> openai.AzureOpenAI:
    """Return Azure's client, which is always answered the same."""
    http_client = httpx.Client(transport=httpx.MockTransport(lambda _: json_response(body)))
    return openai.AzureOpenAI(
        api_key="k", azure_endpoint="https://r.openai.azure.com", api_version="2024-10-21", http_client=http_client
    )


@pytest.mark.openai
@pytest.mark.parametrize(
    ("answers", "cost"),
    [
        ("", COST),  # an older API that does not name the model
        ("house-model", COST),  # a gateway that repeats what it was asked for
        ("gpt-4o-mini-2024-07-18", COST),
        ("gpt-4o-2024-08-06", Decimal("0.000875")),  # the response knows best
    ],
)
def test_a_deployment_has_the_price_of_its_model(answers: str, cost: Decimal) -> None:
    """Where the response does not name a model of the price list, the map does; the tags keep the names as sent."""
    with capture(deployments={"house-model": "gpt-4o-mini"}) as captured:
        azure(completion(model=answers)).chat.completions.create(model="house-model", messages=MESSAGES)
        tags = captured.tags("chat house-model")
        assert cost == captured.golden_signals().sample.spent_usd
    assert ("house-model", "genai-prices") == (tags["model"], tags["cost_source"])


@pytest.mark.openai
def test_without_the_map_a_deployment_is_unknown() -> None:
    """A name of the user's own has no price."""
    with capture() as captured:
        azure(completion(model="house-model")).chat.completions.create(model="house-model", messages=MESSAGES)
        assert "unknown" == captured.tags("chat house-model")["cost_source"]


def test_a_price_of_the_deployment_itself_comes_first() -> None:
    """Then the user's price of the model behind it, then the published one."""
    table: Any = {"mine": {"input": 1, "output": 1}, "gpt-4o-mini": {"input": 2, "output": 2}}
    deployments = {"mine": "gpt-4o-mini", "other": "gpt-4o-mini", "third": "gpt-4o"}
    prices = PriceBook(table, deployments=deployments, now=lambda: NOW)
    usage = TokenUsage(1_000_000, 0)
    found = [prices.price(usage, name, provider="azure.ai.openai") for name in ("mine", "other", "third")]
    assert [(Decimal(1), "user"), (Decimal(2), "user"), (Decimal("2.5"), "genai-prices")] == found


def test_a_deployment_may_be_called_like_another_model() -> None:
    """The map says what it runs, whatever its name says."""
    prices = book(deployments={"gpt-4o": "gpt-4o-mini"})
    assert Decimal("0.15") == getattr(prices.price(TokenUsage(1_000_000, 0), "gpt-4o"), "usd", None)


def test_deployments_come_from_the_environment_too() -> None:
    """Pairs with commas between them."""
    settings = Settings.resolve({}, {"TASKPILOT_DEPLOYMENTS": "my-gpt4o=gpt-4o, eu/small = gpt-4o-mini"})
    assert {"my-gpt4o": "gpt-4o", "eu/small": "gpt-4o-mini"} == settings.deployments
    assert {} == Settings.resolve({}, {}).deployments


@pytest.mark.parametrize("wrong", [{"a": ""}, {"": "gpt-4o"}, {"a": 1}, ["gpt-4o"], "gpt-4o", {1: "gpt-4o"}])
def test_wrong_deployments_are_refused(wrong: Any) -> None:
    """The message names the setting and shows what would be right."""
    with pytest.raises(ConfigurationError, match=r"deployments=.*my-gpt4o"):
        Settings(deployments=wrong)
