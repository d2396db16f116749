"""track_llm_metrics: calls that no patch can see."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskpilot_instrument as tp
from taskpilot_instrument.testing import Captured

RESULTS: dict[str, Any] = {
    "dictionary": {"model": "gpt-4o-mini", "usage": {"prompt_tokens": 150, "completion_tokens": 50}},
    "object": SimpleNamespace(
        model="gpt-4o-mini", usage=SimpleNamespace(prompt_tokens=150, completion_tokens=50, total_tokens=200)
    ),
    "responses": {"model": "gpt-4o-mini", "object": "response", "usage": {"input_tokens": 150, "output_tokens": 50}},
    "event": {
        "type": "response.completed",
        "response": {"model": "gpt-4o-mini", "usage": {"input_tokens": 150, "output_tokens": 50}},
    },
    "event object": SimpleNamespace(
        type="response.completed",
        response=SimpleNamespace(model="gpt-4o-mini", usage=SimpleNamespace(input_tokens=150, output_tokens=50)),
    ),
    "framework": SimpleNamespace(
        model="gpt-4o-mini", usage_details=SimpleNamespace(input_token_count=150, output_token_count=50)
    ),
    "framework dictionary": {
        "model": "gpt-4o-mini",
        "usage_details": {"input_token_count": 150, "output_token_count": 50},
    },
}


@pytest.mark.parametrize("shape", RESULTS)
def test_any_shape_is_counted(shape: str) -> None:
    """Tokens and exact cost are read from whatever shape the result has."""
    metrics = tp.MetricsBackend()
    assert tp.track_llm_metrics(RESULTS[shape], "PlannerAgent", metrics) == 0.0000525
    assert metrics.get_counter("llm.cost.agent.PlannerAgent") == 0.0000525
    assert metrics.get_counter("llm.tokens.input.gpt-4o-mini") == 150
    assert metrics.get_counter("llm.tokens.output.gpt-4o-mini") == 50
    metrics.close()


class _Hostile:
    """Raise at whatever it is asked."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return _Hostile
        raise ValueError(name)


_NAMES = [
    "usage", "usage_details", "response", "model", "id", "choices", "service_tier", "object", "output", "status",
    "server_tool_use", "input_tokens", "output_tokens", "prompt_tokens", "input_tokens_details", "cache_creation",
]  # fmt: skip
_LEAVES = st.none() | st.booleans() | st.integers(-2, 10**13) | st.floats() | st.text(max_size=3) | st.builds(_Hostile)
_SHAPES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=5)
        | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=5).map(lambda fields: SimpleNamespace(**fields))
    ),
    max_leaves=12,
)


@given(_SHAPES)
def test_whatever_a_result_is_the_call_is_counted(result: Any) -> None:
    """No shape raises into the agent that called, and each is one call."""
    metrics = tp.MetricsBackend()
    tp.track_llm_metrics(result, "PlannerAgent", metrics)
    (family,) = [family for family in metrics.registry.collect() if family.name == "taskpilot_llm_calls"]
    assert [1.0] == [sample.value for sample in family.samples if sample.name == "taskpilot_llm_calls_total"]
    metrics.close()


def test_latency_is_unknown_not_zero() -> None:
    """A tracked call counts in no latency histogram."""
    metrics = tp.MetricsBackend()
    tp.track_llm_metrics(RESULTS["object"], "a", metrics)
    assert metrics.registry.get_sample_value("taskpilot_llm_calls_total", {
        "agent": "a", "model": "gpt-4o-mini", "provider": "openai", "outcome": "success", "error_type": "none"
    }) == 1  # fmt: skip
    assert not metrics.registry.get_sample_value(
        "taskpilot_llm_duration_seconds_count", {"model": "gpt-4o-mini", "provider": "openai"}
    )
    metrics.close()


def test_rolls_up_into_the_run_around_it(captured: Captured) -> None:
    """Inside a workflow, tokens and cost reach its span."""
    with tp.workflow("w"):
        tp.track_llm_metrics(RESULTS["object"], "a", captured.handle.metrics)
    tags = captured.tags("workflow.run")
    assert (tags["input_tokens"], tags["output_tokens"], tags["cost_usd"]) == (150, 50, 0.0000525)


def test_without_usage_the_cost_is_unknown() -> None:
    """A result that says nothing of its usage has no cost, and is counted as unpriced."""
    metrics = tp.MetricsBackend()
    assert tp.track_llm_metrics({"text": "hi"}, "a", metrics, model="gpt-4o-mini") is None
    assert metrics.registry.get_sample_value("taskpilot_llm_unpriced_calls_total", {"model": "gpt-4o-mini"}) == 1
    metrics.close()


@pytest.mark.parametrize(
    ("result", "said"), [(None, "result=None"), ("a text", "result=str"), ({"text": ""}, "result=dict")]
)
def test_a_result_without_usage_is_one_warning(result: object, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """What tells no usage breaks no agent: it is a call of unknown cost, and one warning names the argument."""
    metrics, agent = tp.MetricsBackend(), f"given-{type(result).__name__}"
    assert [None, None] == [tp.track_llm_metrics(result, agent, metrics) for _ in range(2)]
    assert 1 == caplog.text.count(said)
    assert f"of agent {agent}: the call is counted, its tokens and cost are unknown" in caplog.text
    unpriced = metrics.registry.get_sample_value("taskpilot_llm_unpriced_calls_total", {"model": "none"})
    metrics.close()
    assert 2 == unpriced


@pytest.mark.parametrize("arguments", [({}, "", tp.MetricsBackend), ({}, "a", dict)])
def test_bad_arguments(arguments: Any) -> None:
    """A missing agent name and something that is no backend are refused."""
    result, agent, backend = arguments
    with pytest.raises(tp.ConfigurationError):
        tp.track_llm_metrics(result, agent, backend())


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"input_tokens": 1_000_000, "output_tokens": 0, "service_tier": "standard", "speed": "standard"}, 5.0),
        ({"input_tokens": 0, "output_tokens": 0, "server_tool_use": {"web_search_requests": 3}}, 0.03),
        ({"input_tokens": 1_000_000, "output_tokens": 0, "service_tier": "batch"}, 2.5),
        ({"input_tokens": 1_000_000, "output_tokens": 0, "service_tier": "priority"}, None),
        ({"input_tokens": 1_000_000, "output_tokens": 0, "speed": "fast"}, None),
        ({"input_tokens": 1_000_000, "output_tokens": 0, "inference_geo": "us"}, None),
        ({"input_tokens": 1_000_000, "output_tokens": 0, "inference_geo": "not_available"}, 5.0),
    ],
)
def test_what_anthropic_bills_otherwise_is_priced_or_unknown(usage: dict[str, Any], cost: float | None) -> None:
    """Searches cost beside the tokens, batches half; a tier, speed or place without a listed price is unknown."""
    result = {"model": "claude-opus-4-7", "type": "message", "usage": usage}
    metrics = tp.MetricsBackend()
    assert cost == tp.track_llm_metrics(result, "a", metrics, provider="anthropic")
    metrics.close()
