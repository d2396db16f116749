"""What was spent for nothing: by the real client, however a call ends, to the exact cent."""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metrics_records import ManualClock, llm_call
from mock_openai import MODEL, async_client, chunks, completion, event_response, httpx, json_response, sync_client

import taskpilot_instrument as tp
from taskpilot_instrument._waste import NO_WASTE, Waste, waste_of
from taskpilot_instrument.errors import ConfigurationError, TokenLimitError
from taskpilot_instrument.golden import compute
from taskpilot_instrument.semconv import Outcome
from taskpilot_instrument.sinks._ledger_memory import MemoryLedger
from taskpilot_instrument.sinks.ledger import to_pico
from taskpilot_instrument.sinks.metrics import MetricsBackend
from taskpilot_instrument.testing import Captured, capture
from taskpilot_instrument.usage import TokenUsage

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello"}]
ASK: Any = {"model": MODEL, "messages": MESSAGES}
#: What 150 input and 50 output tokens of the model cost.
COST = Decimal("0.0000525")
#: A call that told its usage, or did not, before it went wrong; one that was refused; one that was made three times.
PRICED = Waste(attempts=1, calls=1, tokens=200, usd=COST)
UNPRICED = Waste(attempts=1, calls=1, unpriced=1)
REFUSED = Waste(attempts=1)
TRIED_AGAIN = Waste(attempts=2, retries=2)


def early_usage() -> list[bytes]:
    """Return the events of a stream that tells its usage so far with each chunk, as some hosts do."""
    *events, usage, done = chunks()
    told = json.loads(usage.removeprefix(b"data: "))["usage"]
    with_usage = [json.loads(event.removeprefix(b"data: ")) | {"usage": told} for event in events]
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in with_usage] + [done]


def failed_response() -> bytes:
    """Return a response that failed after it was worked on."""
    return json.dumps({
        "id": "resp_1", "object": "response", "created_at": 1, "model": MODEL, "status": "failed", "output": [],
        "error": {"code": "server_error", "message": "no"},
        "usage": {"input_tokens": 150, "output_tokens": 50, "total_tokens": 200},
    }).encode()  # fmt: skip


def answers(*each: Any) -> Callable[[Any], Any]:
    """Return what answers requests one after the other; an exception is raised."""
    waiting: Iterator[Any] = iter(each)

    def answer(_request: Any) -> Any:
        found = next(waiting)
        if isinstance(found, Exception):
            raise found
        return found() if callable(found) else found

    return answer


def refusal(status: int = 429) -> Any:
    """Return an HTTP error that asks to be tried again at once."""
    return httpx.Response(status, headers={"retry-after-ms": "1"}, content=b"no")


# --- how a call goes wrong ----------------------------------------------------------------------


def read_all(client: openai.OpenAI) -> None:
    """Read a stream to the end that it comes to."""
    with suppress(openai.APIError, httpx.TransportError):
        list(client.chat.completions.create(**ASK, stream=True))


def close_early(client: openai.OpenAI) -> None:
    """Leave a stream after its first chunk."""
    stream = client.chat.completions.create(**ASK, stream=True)
    next(iter(stream))
    stream.close()


def forget(client: openai.OpenAI) -> None:
    """Read one chunk of a stream and never look at it again."""
    next(iter(client.chat.completions.create(**ASK, stream=True)))
    gc.collect()


def create(client: openai.OpenAI) -> None:
    """Make a plain call, and take it as it comes."""
    with suppress(openai.APIError):
        client.with_options(max_retries=2).chat.completions.create(**ASK)


def respond(client: openai.OpenAI) -> None:
    """Ask for a response."""
    client.responses.create(model=MODEL, input="hello")


async def aread_all(client: openai.AsyncOpenAI) -> None:
    """Read a stream to the end that it comes to."""
    with suppress(openai.APIError, httpx.TransportError):
        _ = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]


async def aclose_early(client: openai.AsyncOpenAI) -> None:
    """Leave a stream after its first chunk."""
    stream = await client.chat.completions.create(**ASK, stream=True)
    await anext(aiter(stream))
    await stream.close()


async def aforget(client: openai.AsyncOpenAI) -> None:
    """Read one chunk of a stream and never look at it again."""
    await anext(aiter(await client.chat.completions.create(**ASK, stream=True)))
    for _ in range(20):  # the loop itself closes the generators that were forgotten, one within the other
        await asyncio.sleep(0)
    gc.collect()


async def acreate(client: openai.AsyncOpenAI) -> None:
    """Make a plain call, and take it as it comes."""
    with suppress(openai.APIError):
        await client.with_options(max_retries=2).chat.completions.create(**ASK)


async def arespond(client: openai.AsyncOpenAI) -> None:
    """Ask for a response."""
    await client.responses.create(model=MODEL, input="hello")


LOST = httpx.ReadError("connection lost")
WAYS: dict[str, tuple[Any, Any, Callable[[], tuple[Any, ...]], Waste | None]] = {
    "succeeds": (create, acreate, lambda: (json_response(completion()),), None),
    "stream succeeds": (read_all, aread_all, lambda: (event_response(*chunks()),), None),
    "stream fails after its usage": (
        read_all, aread_all, lambda: (event_response(*chunks()[:-1], LOST),), PRICED,
    ),
    "stream fails before its usage": (
        read_all, aread_all, lambda: (event_response(*chunks()[:2], LOST),), UNPRICED,
    ),
    "closed, usage known": (close_early, aclose_early, lambda: (event_response(*early_usage()),), PRICED),
    "closed, usage unknown": (close_early, aclose_early, lambda: (event_response(*chunks()),), UNPRICED),
    "abandoned, usage known": (forget, aforget, lambda: (event_response(*early_usage()),), PRICED),
    "abandoned, usage unknown": (forget, aforget, lambda: (event_response(*chunks()),), UNPRICED),
    "response failed": (respond, arespond, lambda: (json_response(failed_response()),), PRICED),
    "refused": (create, acreate, lambda: (refusal(400),), REFUSED),
    "succeeds at last": (
        create, acreate, lambda: (refusal(), refusal(500), json_response(completion())), TRIED_AGAIN,
    ),
    "retried in vain": (
        create, acreate, lambda: (refusal(), refusal(), refusal()), Waste(attempts=3, retries=2),
    ),
    "read timed out each time": (
        create, acreate, lambda: (httpx.ReadTimeout("slow"),) * 3, None,  # see below
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way][3] is not None or "succeeds" in way])
async def test_what_each_way_to_end_wastes(captured: Captured, way: str, mode: str) -> None:
    """Attempts, tokens and exact dollars of one call, by agent and on the signals, sync and async alike."""
    sync_call, async_call, script, expected = WAYS[way]
    answer = answers(*script())

    @tp.observed_agent(name="PlannerAgent")
    async def plan() -> None:
        if mode == "sync":
            sync_call(sync_client(answer))
        else:
            await async_call(async_client(answer))

    await plan()
    assert ({} if expected is None else {"PlannerAgent": expected}) == captured.handle.waste()
    assert (expected or NO_WASTE) == captured.golden_signals().sample.wasted
    assert (expected or NO_WASTE) == captured.golden_signals(agent="PlannerAgent", model=MODEL).sample.wasted
    assert NO_WASTE == captured.golden_signals(agent="Other").sample.wasted


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_call_that_timed_out_may_have_cost_something(captured: Captured, mode: str) -> None:
    """The provider may have answered what we no longer waited for: the cost is unknown, not zero."""
    create_sync, create_async, script, _ = WAYS["read timed out each time"]
    answer = answers(*script())
    if mode == "sync":
        create_sync(sync_client(answer))
    else:
        await create_async(async_client(answer))
    wasted = captured.handle.waste()["none"]
    assert (1, 1, 0, 0) == (wasted.calls, wasted.unpriced, wasted.tokens, wasted.usd)


async def test_a_cancelled_task_wastes_its_call(captured: Captured) -> None:
    """A call that was cancelled while it waited for its answer may be billed."""
    asked = asyncio.Event()

    async def never(_request: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(async_client(never).chat.completions.create(**ASK))
    await asked.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert {"none": UNPRICED} == captured.handle.waste()


def test_what_we_blocked_was_no_attempt() -> None:
    """A call that a limit of ours refused was never sent and cost nothing."""
    with capture(token_limits=[tp.TokenLimit(1, on_exceed="block")]) as captured:
        with pytest.raises(TokenLimitError):
            sync_client(answers()).chat.completions.create(**ASK, max_tokens=10)
        assert {} == captured.handle.waste()
        assert (0, 1) == (captured.golden_signals().sample.calls, captured.golden_signals().blocked_calls)


# --- the signals --------------------------------------------------------------------------------


def work(answer: Callable[[Any], Any], calls: int = 2) -> None:
    """Run an agent that streams: its first call fails after the usage, the others succeed."""

    @tp.observed_agent(name="PlannerAgent")
    def plan() -> None:
        for _ in range(calls):
            read_all(sync_client(answer))

    plan()


def test_the_cost_of_a_success_says_how_much_of_it_was_waste(captured: Captured) -> None:
    """All spend is divided by the successes; the waste among it is named, and shown."""
    work(answers(event_response(*chunks()[:-1], LOST), event_response(*chunks())))
    signals = captured.golden_signals()
    assert float(COST * 2) == signals.cost_per_successful_task_usd
    assert (float(COST), 200, 1, 1) == (
        signals.wasted_cost_usd,
        signals.wasted_tokens,
        signals.wasted_calls,
        signals.wasted_attempts,
    )
    assert 50.0 == signals.waste_percent
    assert 0 == signals.wasted_unpriced_calls == signals.retries
    assert "2 of 2 billable calls priced, $0.0000525 wasted on 1 call" in str(signals)


def test_waste_of_unknown_cost_is_a_lower_bound(captured: Captured) -> None:
    """Where a wasted call told no usage, the table says that it was that much at least."""
    work(answers(event_response(*chunks()[:2], LOST), event_response(*chunks())))
    signals = captured.golden_signals()
    assert (0.0, 1) == (signals.wasted_cost_usd, signals.wasted_unpriced_calls)
    assert ", an unknown sum wasted on 1 call" in str(signals)


def test_the_counter_of_calls_tells_outcomes_by_agent(captured: Captured) -> None:
    """Prometheus has the attempts by agent and outcome in the family that counts calls."""
    work(answers(event_response(*chunks()[:-1], LOST), event_response(*chunks())))
    lines = [line for line in captured.prometheus_text.splitlines() if line.startswith("taskpilot_llm_calls_total{")]
    assert {'outcome="error"': "1.0", 'outcome="success"': "1.0"} == {
        next(label for label in line.split(",") if label.startswith("outcome=")): line.rpartition(" ")[2]
        for line in lines
    }
    assert all('agent="PlannerAgent"' in line for line in lines)


def test_waste_slides_out_of_a_window() -> None:
    """A window forgets what lies before it; the sum since the start does not, also once it was put away."""
    with capture(fake_clock=True) as captured:
        for _ in range(3):
            work(answers(event_response(*chunks()[:-1], LOST)), calls=1)
            assert captured.clock is not None
            captured.clock.advance(300)
        assert 3 == captured.handle.waste()["PlannerAgent"].calls
        assert 2 == captured.handle.waste(window="11m")["PlannerAgent"].calls
        captured.clock.advance(7200)
        assert {} == captured.handle.waste(window="1h")
        assert 3 == captured.handle.waste(window="24h")["PlannerAgent"].calls
        assert COST * 3 == captured.handle.waste()["PlannerAgent"].usd


@pytest.mark.parametrize("window", ["", "1", "1s", "25h", "week"])
def test_other_windows_are_refused(captured: Captured, window: str) -> None:
    """What cannot be read or is not kept is said to be so."""
    with pytest.raises(ConfigurationError, match="window"):
        captured.handle.waste(window=window)


def test_the_ledger_keeps_it_by_agent_and_model() -> None:
    """The hourly figures of a ledger have the same sums, in pico-dollars."""
    ledger = MemoryLedger()
    with capture(ledger=ledger) as captured:
        work(answers(event_response(*chunks()[:-1], LOST), event_response(*chunks())))
        create(sync_client(answers(refusal(), refusal(), json_response(completion()))))
        assert captured.handle.parts.history is not None
        captured.handle.parts.history.flush()
        found = {key: figures for _, key, figures in ledger.rollups(0, 2**40) if "model=" in key}
    planner, nobody = found[f"agent=PlannerAgent|model={MODEL}"], found[f"agent=none|model={MODEL}"]
    assert (to_pico(COST), 200, 1, 0) == tuple(planner[name] for name in NAMES)
    assert (0, 0, 2, 2) == tuple(nobody[name] for name in NAMES)
    assert to_pico(COST * 2) == planner["cost"]


NAMES = ("wasted", "wasted_tokens", "wasted_attempts", "retries")


# --- the definition -----------------------------------------------------------------------------

_OUTCOMES = st.sampled_from(list(Outcome))
_COSTS = st.decimals(0, 10, places=12).map(str) | st.none()
_CALLS = st.lists(st.tuples(st.sampled_from(["A", "B", None]), _OUTCOMES, _COSTS, st.integers(0, 3)), max_size=12)


@given(_CALLS, st.integers(0, 2))
def test_waste_is_the_exact_sum_over_what_did_not_succeed(calls: list[Any], pause: int) -> None:
    """By agent, by filter and in all it is the same sum, never more than what was spent, however time is cut up."""
    clock = ManualClock()
    expected: dict[str, Decimal] = {}
    spent = Decimal(0)
    with closing(MetricsBackend(clock=clock.clock)) as backend:
        for agent, outcome, cost, retries in calls:
            record = llm_call(agent=agent, outcome=outcome, cost=cost)
            assert record.llm is not None
            record.llm.retries = retries
            backend.finished(record)
            clock.advance(pause * 60)
            spent += Decimal(cost or 0)
            if outcome is not Outcome.SUCCESS or retries:
                name = agent or "none"
                expected[name] = expected.get(name, Decimal(0)) + Decimal(
                    0 if outcome is Outcome.SUCCESS else cost or 0
                )
        found = backend.waste()
        whole = compute(backend).sample.wasted
    assert expected == {agent: each.usd for agent, each in found.items()}
    assert sum(expected.values()) == whole.usd <= spent
    assert sum(retries for *_, retries in calls) == whole.retries <= whole.attempts
    assert sum(outcome is not Outcome.SUCCESS for _, outcome, *_ in calls) == whole.calls >= whole.unpriced
    assert sorted(expected.values(), reverse=True) == [each.usd for each in found.values()]


def test_only_llm_calls_waste() -> None:
    """What a run wasted is the sum of its calls, and is not counted once more."""
    assert waste_of(replace(llm_call(outcome=Outcome.ERROR), llm=None)) is None


@pytest.mark.parametrize(("usage", "tokens"), [(TokenUsage(150, None), 150), (TokenUsage(None, 50), 50)])
def test_tokens_that_nobody_told_are_not_made_up(usage: TokenUsage, tokens: int) -> None:
    """A call that told one of its counts wasted at least those."""
    record = llm_call(MODEL, outcome=Outcome.ERROR)
    wasted = waste_of(replace(record, usage=usage))
    assert wasted is not None
    assert tokens == wasted.tokens


def test_a_cost_that_is_known_in_part_is_a_lower_bound() -> None:
    """The part counts, and the call is among those whose cost is not known."""
    found = waste_of(replace(llm_call(outcome=Outcome.ERROR, cost="0.5"), cost_source="partial"))
    assert Waste(attempts=1, calls=1, tokens=200, usd=Decimal("0.5"), unpriced=1) == found
