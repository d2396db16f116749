"""Record an LLM call that no patch can see: another provider's client, a gateway, an agent framework's result."""

import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from opentelemetry.trace import INVALID_SPAN

from taskpilot_instrument._bodies import as_object
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import current
from taskpilot_instrument._recorder import Recorder, active
from taskpilot_instrument._records import Finished, LLMCall
from taskpilot_instrument._token_watch import watch
from taskpilot_instrument.context import Ids
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.patches._openai_response import read_response
from taskpilot_instrument.pricing import BOOK
from taskpilot_instrument.semconv import COST_UNKNOWN, OPERATION_CHAT, Kind, Outcome
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.usage import WEB_SEARCHES, Beside, Fields, answer_in, fields_of, usage_from_details

#: Where Anthropic says that a call has a price of its own, and how it says that it has none.
_TIERS: Final = ("service_tier", "speed", "inference_geo")
_USUAL: Final = frozenset({"standard", "global", "not_available", ""})

_log: Final = logging.getLogger("taskpilot_instrument")
_MOST_WARNINGS: Final = 100
#: Sinks for which it matters what a call cost, and not when it was.
_HEAR: Final = frozenset({"budget", "history"})


def track_llm_metrics(
    result: Any,
    agent_name: str,
    metrics: MetricsBackend,
    *,
    model: str | None = None,
    provider: str = "openai",
) -> float | None:
    """Count one LLM call's tokens and cost from its result, for calls that the patches cannot see.

    Do not use it for calls of a patched client: they are counted already. The call's latency is unknown, so
    it counts in no latency; inside a workflow its tokens and cost roll up into the spans around it.

    :param result: a response with ``usage`` in OpenAI's or Anthropic's shape, as object or dictionary, or an
        agent framework's with ``usage_details`` (``input_token_count``, ``output_token_count``). One that tells no
        usage, such as None, is counted as a call of unknown cost, and a warning says so once.
    :param agent_name: the agent that the call belongs to.
    :param metrics: where to count, such as ``instrument().metrics``.
    :param model: the model's name, where the result has none.
    :param provider: ``gen_ai.provider.name``; decides which price list is asked first.
    :returns: the cost in USD, None where it is unknown.
    :raises ConfigurationError: where ``agent_name`` is no name or ``metrics`` no backend.
    """
    if not isinstance(agent_name, str) or not agent_name:
        raise ConfigurationError(f"agent_name takes the agent's name, not {agent_name!r}")
    if not isinstance(metrics, MetricsBackend):
        raise ConfigurationError(f"metrics takes a MetricsBackend such as instrument().metrics, not {metrics!r}")
    call = _read(result, model, provider)
    if call.usage is None:
        _warn_of_no_usage(type(result).__name__ if result is not None else "None", agent_name)
    try:
        return _count(call, agent_name, metrics)
    except Exception as error:
        swallow("tracking", error)
        return None


def _count(call: LLMCall, agent_name: str, metrics: MetricsBackend) -> float | None:
    """Count a call, and tell whoever hears of calls; return its cost."""
    recorder, around = active(), current()
    price = (recorder.prices if recorder is not None else BOOK).price_call(call)
    if recorder is not None and metrics in recorder.sinks:
        while around is not None:
            if around.totals is not None:
                around.totals.begin()
                around.totals.add(call, price)
            around = around.parent
    around = current()
    record = Finished(
        kind=Kind.LLM,
        name=call.operation,
        outcome=Outcome.SUCCESS,
        span=INVALID_SPAN,
        ids=Ids(""),
        attributes=None,
        workflow=around.workflow_name if around is not None else None,
        agent=agent_name,
        model=call.model,
        started_at_ns=0,
        duration_ns=0,
        usage=call.usage,
        cost=price.usd if price is not None else None,
        cost_source=price.source if price is not None else COST_UNKNOWN,
        error=None,
        error_type=None,
        reason=None,
        llm=call,
        input_length=None,
        output_length=None,
        input_text=None,
        output_text=None,
        time_to_first_chunk_ns=None,
    )
    metrics.record_call(record)
    if recorder is not None and metrics in recorder.sinks:
        _tell(replace(record, ids=around.ids) if around is not None else record, recorder)
    watch(record, call, around, recorder.note if recorder is not None and metrics in recorder.sinks else metrics.noted)
    return float(price.usd) if price is not None else None


@lru_cache(_MOST_WARNINGS)
def _warn_of_no_usage(given: str, agent: str) -> None:
    """Say it once, rather than break the agent that called: what it was given may only now and then be wrong."""
    _log.warning(
        "taskpilot_instrument: track_llm_metrics() found no usage in result=%s of agent %s: the call is counted, its "
        "tokens and cost are unknown. Pass the response itself.",
        given,
        agent,
    )


def _tell(record: Finished, recorder: Recorder) -> None:
    """Tell budgets and history, which hear of patched calls like any other sink."""
    for sink in recorder.sinks:
        if sink.where in _HEAR:
            try:
                sink.finished(record)
            except Exception as error:
                swallow(sink.where, error)


def _read(result: Any, model: str | None, provider: str) -> LLMCall:
    call = LLMCall(OPERATION_CHAT, model, provider=provider)
    call.billable = True
    try:
        answer = answer_in(as_object(result))
        read_response(call, answer)
        if call.usage is not None:
            _read_beside(call, fields_of(fields_of(answer).get("usage")))
        else:
            call.usage = usage_from_details(fields_of(answer).get("usage_details"))
    except Exception as error:
        swallow("usage", error)
    call.model = model or call.response_model
    return call


def _read_beside(call: LLMCall, usage: Fields) -> None:
    """Read what Anthropic tells beside the tokens: searches, and what else the price depends on."""
    tool_use = usage.get("server_tool_use")
    searches = None if tool_use is None else fields_of(tool_use).get("web_search_requests")
    if call.beside is None and type(searches) is int and searches > 0:
        call.beside = Beside({WEB_SEARCHES: searches})
    for name in _TIERS:
        tier = usage.get(name)
        if call.service_tier is None and isinstance(tier, str) and tier not in _USUAL:
            call.service_tier = tier
