"""Guardrails: what they check, how long they may take, and what happens then."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from checked_agents import KINDS, RAN, STREAMS, Agent, items
from openai import AsyncOpenAI, OpenAI
from opentelemetry import trace

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.guardrails import Verdict
from taskpilot_instrument.testing import Captured, capture

BLOCKED = "agent.Echo.guardrails.blocked"
OUTPUT_BLOCKED = "agent.Echo.guardrails.output_blocked"


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    """No agent has run yet."""
    RAN.clear()


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that is not set before the test is over."""
    event = threading.Event()
    yield event
    event.set()


def counts(captured: Captured) -> tuple[float, float]:
    """Return how often input and output were blocked."""
    return captured.metrics.get_counter(BLOCKED), captured.metrics.get_counter(OUTPUT_BLOCKED)


def without_bad(text: str) -> bool:
    """Allow what has no bad in it."""
    return "bad" not in text


async def without_bad_async(text: str) -> bool:
    """Allow what has no bad in it, after a while."""
    await asyncio.sleep(0)
    return "bad" not in text


class Checker:
    """An object that can be called, and checks asynchronously."""

    async def __call__(self, text: str) -> dict[str, object]:
        """Allow what has no bad in it."""
        return {"allowed": "bad" not in text, "reason": "it is bad"}


def hands_out_a_coroutine(text: str) -> Coroutine[Any, Any, bool]:
    """Return a coroutine that allows what has no bad in it."""
    return without_bad_async(text)


CHECKS = [without_bad, without_bad_async, Checker(), hands_out_a_coroutine]


# --- input and output ---------------------------------------------------------------------------


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("timeout_s", [None, 30.0])
async def test_input_is_checked(agent: Agent, check: Callable[..., Any], timeout_s: float | None) -> None:
    """A plain or async check stands before an agent of any kind: blocked input does not run it."""
    with capture(guardrails=[tp.Guardrail("g", check_input=check, timeout_s=timeout_s)]) as captured:
        assert "echo good" == "".join(await items(agent, "good"))
        with pytest.raises(tp.GuardrailBlockedError, match="g blocked the input of Echo") as caught:
            await items(agent, "bad")
        assert (1, 0) == counts(captured)
        assert ["success", "blocked"] == [
            span.attributes["outcome"] for span in captured.spans if span.name == "Echo.execute" and span.attributes
        ]
    assert (["good"], "g", "input") == (RAN, caught.value.guardrail, caught.value.direction)


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("check", CHECKS)
async def test_output_is_checked(agent: Agent, check: Callable[..., Any]) -> None:
    """A check stands behind an agent of any kind: blocked output is not returned, of a stream it ends in an error."""
    seen: list[str] = []
    with capture(guardrails=[tp.Guardrail("g", check_output=check)]) as captured:
        assert "echo good" == "".join(await items(agent, "good"))
        with pytest.raises(tp.GuardrailBlockedError, match="g blocked the output of Echo") as caught:
            await items(agent, "bad", seen)
        assert (0, 1) == counts(captured)
    assert (["good", "bad"], "output") == (RAN, caught.value.direction)
    assert (["ec", "ho bad"] if agent in STREAMS else []) == seen


@pytest.mark.parametrize("agent", KINDS)
async def test_a_result_can_be_replaced(agent: Agent) -> None:
    """Where that was chosen, the caller gets the replacement; the outcome is blocked all the same."""
    guardrail = tp.Guardrail(
        "g", check_input=lambda text: text != "bad in", check_output=lambda text: "bad out" not in text,
        on_block="replace", replacement="sorry",
    )  # fmt: skip
    with capture(guardrails=[guardrail]) as captured:
        assert ["sorry"] == await items(agent, "bad in")
        assert "sorry" == (await items(agent, "bad out"))[-1]
        assert (1, 1) == counts(captured)
        assert {"blocked"} == {span.attributes["outcome"] for span in captured.spans if span.attributes}
    assert ["bad out"] == RAN


async def test_blocked_input_reaches_no_model(server: EmbeddedServer, client: OpenAI, aclient: AsyncOpenAI) -> None:
    """Where the input is blocked, nothing is sent, neither by a plain agent nor by an async one."""

    @tp.observed_agent
    def ask(text: str) -> object:
        return client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])

    @tp.observed_agent
    async def aask(text: str) -> object:
        return await aclient.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])

    with capture(guardrails=[tp.Guardrail("g", check_input=without_bad_async)]):
        with pytest.raises(tp.GuardrailBlockedError):
            ask("bad")
        with pytest.raises(tp.GuardrailBlockedError):
            await aask("bad")
        assert [] == server.requests
        ask("good")
        await aask("good")
    assert 2 == len(server.requests)


async def test_only_some_agents_are_checked() -> None:
    """A guardrail can be of some agents only."""
    with capture(guardrails=[tp.Guardrail("g", check_input=without_bad, agents=["Other"])]) as captured:
        assert ["echo bad"] == await items(KINDS[0], "bad")
        assert 1 == captured.golden_signals().unchecked_runs


def test_where_there_is_no_text_nothing_is_checked() -> None:
    """An agent without text in its input is not asked about; the run counts as unchecked."""

    @tp.observed_agent
    def work() -> None: ...

    with capture(guardrails=[tp.Guardrail("g", check_input=lambda _: False, check_output=lambda _: False)]) as captured:
        work()
        assert 1 == captured.golden_signals().unchecked_runs


async def test_guardrails_are_asked_in_turn_after_policies() -> None:
    """Policies come first, then guardrails in their order, none after one that blocks."""
    asked: list[str] = []

    def check(name: str, *, allowed: bool) -> tp.Guardrail:
        return tp.Guardrail(name, check_input=lambda _: (asked.append(name), allowed)[1])

    guardrails = [check("a", allowed=True), check("b", allowed=False), check("c", allowed=True)]
    refused = pytest.raises(tp.GuardrailBlockedError, match="b blocked")
    with capture(policies=[lambda _: asked.append("p")], guardrails=guardrails), refused:
        await items(KINDS[0], "x")
    assert ["p", "a", "b"] == asked


# --- what a check takes and answers -------------------------------------------------------------


def test_what_a_check_is_called_with() -> None:
    """A check gets the text, and the subject where it has a parameter for it."""
    seen: list[object] = []

    def text_only(text: str, threshold: float = 0.5) -> bool:
        seen.append((text, threshold))
        return True

    def required(text: str, what: tp.Subject) -> bool:
        seen.append((text, what.agent))
        return True

    def named(text: str, subject: tp.Subject | None = None) -> bool:
        seen.append((text, subject and subject.moment))
        return True

    for check in (text_only, required, named):
        with capture(guardrails=[tp.Guardrail("g", check_input=check)]):
            KINDS[0]("hi")
    assert [("hi", 0.5), ("hi", "Echo"), ("hi", "agent_input")] == seen


class NumpyLike:
    """What numpy answers a comparison with."""

    def __bool__(self) -> bool:
        """Return no."""
        return False


NumpyLike.__name__ = "bool_"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (False, "it is not allowed"),
        (NumpyLike(), "it is not allowed"),
        ({"allowed": False}, "it is not allowed"),
        ({"allowed": False, "reason": "because"}, "because"),
        (SimpleNamespace(allowed=False), "it is not allowed"),
        (SimpleNamespace(allowed=False, reason="because"), "because"),
        (Verdict(allowed=False, reason="because"), "because"),
    ],
)
def test_every_form_of_no(answer: object, reason: str) -> None:
    """A bool, a mapping and an object with ``allowed`` can say no, and why."""
    guardrail = tp.Guardrail("g", check_input=lambda _: answer)
    with capture(guardrails=[guardrail]), pytest.raises(tp.GuardrailBlockedError) as caught:
        KINDS[0]("hi")
    assert reason == caught.value.reason


@pytest.mark.parametrize("answer", [True, {"allowed": True}, SimpleNamespace(allowed=True), Verdict(allowed=True)])
def test_every_form_of_yes(answer: object) -> None:
    """The same can say yes."""
    with capture(guardrails=[tp.Guardrail("g", check_input=lambda _: answer)]) as captured:
        assert "echo hi" == KINDS[0]("hi")
        assert 1 == captured.golden_signals().checked_runs


def test_a_checks_own_error_is_what_the_caller_sees() -> None:
    """A GuardrailBlockedError that a check raises blocks, and reaches the caller as it is."""
    error = tp.GuardrailBlockedError("mine", guardrail="g", direction="input", reason="because")

    def check(_: str) -> bool:
        raise error

    with capture(guardrails=[tp.Guardrail("g", check_input=check)]) as captured:
        with pytest.raises(tp.GuardrailBlockedError) as caught:
            KINDS[0]("hi")
        assert (1, 0) == counts(captured)
    assert caught.value is error


# --- checks that fail ---------------------------------------------------------------------------


def raises(_: str) -> bool:
    """Fail."""
    raise ValueError("secret")


async def raises_async(_: str) -> bool:
    """Fail."""
    raise TimeoutError("secret")


FAILING: list[tuple[Callable[..., Any], str]] = [
    (raises, "ValueError in test_guardrails.py"),
    (raises_async, "TimeoutError in "),
    (lambda _: None, "TypeError in guardrails.py"),
    (lambda _: "false", "TypeError in guardrails.py"),
    (lambda _: {"allowed": "false"}, "TypeError in guardrails.py"),
]


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize(("check", "reason"), FAILING)
async def test_a_failed_check_allows(agent: Agent, check: Callable[..., Any], reason: str) -> None:
    """Fail-open: the run goes on, and the failure is told without what was said, and counted as one."""
    with capture(guardrails=[tp.Guardrail("g", check_input=check)]) as captured:
        assert "echo hi" == "".join(await items(agent, "hi"))
        (line,) = [line for line in captured.logs if line["category"] == "decision"]
        assert (0, 0) == counts(captured)
        assert 1 == captured.golden_signals().check_failed_runs
        assert "secret" not in str(captured.logs)
    assert ("policy.decided", "g", "fail") == (line["event_name"], line["policy"], line["decision"])
    assert line["reason"].startswith(f"[check_failed] {reason}")


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize(("check", "reason"), FAILING)
async def test_a_failed_check_blocks_where_that_was_chosen(
    agent: Agent, check: Callable[..., Any], reason: str
) -> None:
    """Fail-closed: the run is blocked, counted as blocked, and its check as failed."""
    with capture(guardrails=[tp.Guardrail("g", check_input=check, on_error="block")]) as captured:
        with pytest.raises(tp.GuardrailBlockedError) as caught:
            await items(agent, "hi")
        assert (1, 0) == counts(captured)
        assert 1 == captured.golden_signals().check_failed_runs
    assert ([], True) == (RAN, caught.value.reason.startswith(f"[check_failed] {reason}"))


def test_more_text_than_is_looked_at_is_a_failed_check() -> None:
    """A check that was given only a part of the text has not judged it."""
    with capture(guardrails=[tp.Guardrail("g", check_input=lambda text: len(text) <= 1_000_000)]) as captured:
        KINDS[0]("x" * 1_000_001)
        assert 1 == captured.golden_signals().check_failed_runs


# --- time limits --------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("on_error", ["allow", "block"])
@pytest.mark.parametrize("kind", ["plain", "async", "hands out"])
async def test_a_check_has_so_much_time(agent: Agent, on_error: Any, kind: str, never: threading.Event) -> None:
    """A check that does not answer in time is given up, whatever it is, and counts as failed."""

    def plain(_: str) -> bool:
        return never.wait(30)

    async def coroutine(_: str) -> bool:
        await asyncio.sleep(30)
        return True

    def hands_out(text: str) -> Coroutine[Any, Any, bool]:
        return coroutine(text)

    check = {"plain": plain, "async": coroutine, "hands out": hands_out}[kind]
    guardrail = tp.Guardrail("g", check_input=check, timeout_s=0.05, on_error=on_error)
    with capture(guardrails=[guardrail]) as captured:
        with suppress(tp.GuardrailBlockedError):
            assert "echo hi" == "".join(await items(agent, "hi"))
        (line,) = [line for line in captured.logs if line["category"] == "decision"]
        assert "[check_failed] no answer within 0.05 s" == line["reason"]
        assert 1 == captured.golden_signals().check_failed_runs
    assert (["hi"] if on_error == "allow" else []) == RAN


async def test_a_plain_check_does_not_hold_up_the_event_loop() -> None:
    """While a plain check waits, other tasks run: this one waits for another task."""
    done = threading.Event()

    async def other() -> None:
        done.set()

    with capture(guardrails=[tp.Guardrail("g", check_input=lambda _: done.wait(30), timeout_s=None)]):
        given, _ = await asyncio.gather(items(KINDS[1], "hi"), other())
    assert ["echo hi"] == given


async def test_many_checks_wait_for_a_thread() -> None:
    """More checks at once than there are threads are all answered."""
    with capture(guardrails=[tp.Guardrail("g", check_input=without_bad, timeout_s=30)]) as captured:
        given = await asyncio.gather(*(items(KINDS[1], str(number)) for number in range(100)))
        assert 100 == captured.golden_signals().checked_runs
    assert [[f"echo {number}"] for number in range(100)] == given


async def test_a_cancelled_agent_gives_up_its_check(never: threading.Event) -> None:
    """Who cancels an agent does not wait for its check; the outcome is cancelled."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def check(_: str) -> bool:
        loop.call_soon_threadsafe(begun.set)
        return never.wait(30)

    with capture(guardrails=[tp.Guardrail("g", check_input=check)]) as captured:
        task = asyncio.create_task(items(KINDS[1], "hi"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "cancelled" == captured.tags("Echo.execute")["outcome"]
        assert 1 == captured.golden_signals().unchecked_runs
    assert [] == RAN


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_check_runs_within_the_run(agent: Agent, kind: str) -> None:
    """The span of the agent is current in a check, in whichever thread it runs."""
    spans: list[int] = []

    def plain(_: str) -> bool:
        spans.append(trace.get_current_span().get_span_context().span_id)
        return True

    async def coroutine(text: str) -> bool:
        return plain(text)

    with capture(guardrails=[tp.Guardrail("g", check_input=plain if kind == "plain" else coroutine)]) as captured:
        await items(agent, "hi")
        context = captured.span("Echo.execute").context
    assert context is not None
    assert [context.span_id] == spans


def test_what_a_check_does_is_not_checked() -> None:
    """An agent that judges for a guardrail is not judged itself, in a thread of ours neither."""

    @tp.observed_agent
    def judge(text: str) -> bool:
        return "bad" not in text

    async def ajudge(text: str) -> bool:
        return bool(judge(text))

    with capture(guardrails=[tp.Guardrail("g", check_input=judge, check_output=ajudge)]) as captured:
        assert "echo hi" == KINDS[0]("hi")
        assert ["judge.execute", "judge.execute", "Echo.execute", "workflow.run"] == captured.names()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_checks_go_on_in_a_child_process() -> None:
    """A child process has none of the parent's threads and figures, and starts its own."""
    guardrails = [tp.Guardrail("a", check_input=without_bad), tp.Guardrail("b", check_input=without_bad_async)]
    with capture(guardrails=guardrails) as captured:
        KINDS[0]("hi")
        child = os.fork()
        if child == 0:
            KINDS[0]("hi")
            os._exit(0 if captured.golden_signals().checked_runs == 1 else 1)
        _, status = os.waitpid(child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)


# --- definitions --------------------------------------------------------------------------------


def shouted(text: str) -> str:
    """Say of a text what no check says."""
    return text.upper()


@pytest.mark.parametrize(
    "check",
    [
        str.isascii,
        "abc".__contains__,
        lambda text, *, least=1: len(text) >= least,
        lambda *given: bool(given),
        Checker(),
    ],
)
def test_any_function_of_a_text_may_check(check: Callable[..., Any]) -> None:
    """What can be called with a text is taken, whatever it is written in."""
    assert check is tp.Guardrail("g", check_input=check).check_input


@pytest.mark.parametrize(
    ("define", "said"),
    [
        (lambda: tp.Guardrail("g"), "one of check_input and check_output"),
        (lambda: tp.Guardrail("", check_input=without_bad), "name=''"),
        (lambda: tp.Guardrail("g", check_input="x"), "check_input='x'"),  # type: ignore[arg-type]
        (lambda: tp.Guardrail("g", check_output=Checker), "check_output="),
        (lambda: tp.Guardrail("g", check_input=len), "check_input=<built-in function len>: expected a function"),
        (lambda: tp.Guardrail("g", check_output=print), "check_output="),
        (lambda: tp.Guardrail("g", check_input=lambda: True), "check_input="),
        (lambda: tp.Guardrail("g", check_input=lambda text, subject, more: True), "check_input="),
        (lambda: tp.Guardrail("g", check_input=shouted), "answers a bool or something with a bool `allowed`"),
        (lambda: tp.Guardrail("g", check_input=without_bad, timeout_s=0), "timeout_s=0"),
        (lambda: tp.Guardrail("g", check_input=without_bad, on_error="deny"), "one of allow, block"),  # type: ignore[arg-type]
        (lambda: tp.Guardrail("g", check_input=without_bad, on_block="x"), "one of raise, replace"),  # type: ignore[arg-type]
        (lambda: tp.Guardrail("g", check_input=without_bad, replacement="x"), 'on_block="replace"'),
        (lambda: tp.Guardrail("g", check_input=without_bad, agents="Echo"), "agents='Echo'"),
    ],
)
def test_a_wrong_definition_is_refused(define: Callable[[], object], said: str) -> None:
    """A wrong field is named, with what would be right."""
    with pytest.raises(tp.ConfigurationError) as caught:
        define()
    assert said in str(caught.value)


@pytest.mark.parametrize("guardrails", [[without_bad], "rails.yml"])
def test_what_is_no_guardrail_is_refused_at_the_start(guardrails: Any) -> None:
    """``instrument()`` refuses a list with something else in it."""
    with pytest.raises(tp.ConfigurationError, match="guardrails"), capture(guardrails=guardrails):
        pass
