"""Policies: who is asked when, what their answers do, and what it costs the golden signals."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from checked_agents import KINDS, RAN, STREAMS, Agent, items
from openai import AsyncOpenAI, OpenAI

import taskpilot_instrument as tp
from taskpilot_instrument import _checks, _inspection
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.policy import Moment
from taskpilot_instrument.testing import capture

Ask = Callable[[tp.Subject], Any]


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    """No agent has run yet."""
    RAN.clear()


def about(moment: Moment, answer: Any) -> tp.Policy:
    """Return a policy called ``p`` that gives one answer, or raises it, at one moment."""

    def ask(subject: tp.Subject) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return tp.Policy(ask, "p", moments=[moment])


@tp.observed_tool
def delete_task(number: int, *, force: bool = False) -> str:
    """Delete a task."""
    return f"deleted {number} {force}"


@tp.observed_agent
class PlannerAgent:
    """An agent that calls one tool."""

    def run(self, goal: str) -> str:
        """Call it."""
        return delete_task(3, force=True) + f" for {goal}"


# --- what an answer does ------------------------------------------------------------------------


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("answer", [None, True, "", tp.Allow(), tp.Allow("because"), tp.Flag("odd")])
async def test_the_run_goes_on(agent: Agent, answer: object) -> None:
    """Consent and a flag leave the run and its result as they are."""
    with capture(policies=[about("agent_input", answer), about("agent_output", answer)]) as captured:
        given = await items(agent, "hello")
        outcome = captured.tags("Echo.execute")["outcome"]
    assert ("echo hello", ["hello"], "success") == ("".join(given), RAN, outcome)


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize(
    ("answer", "reason"), [(False, "it is not allowed"), ("odd", "odd"), (tp.Deny("odd", "rule-7"), "[rule-7] odd")]
)
async def test_denied_input_does_not_run(agent: Agent, answer: object, reason: str) -> None:
    """A denial comes before the body, as an error that says which policy and why; the outcome is blocked."""
    with capture(policies=[about("agent_input", answer)]) as captured:
        with pytest.raises(tp.PolicyViolationError) as caught:
            await items(agent, "hello")
        tags = captured.tags("Echo.execute")
    assert ([], "blocked", "PolicyViolationError") == (RAN, tags["outcome"], tags["error.type"])
    assert ("p", reason) == (caught.value.policy, caught.value.reason)
    assert f"p denied the input of Echo: {reason}" == str(caught.value)


@pytest.mark.parametrize("agent", KINDS)
async def test_denied_output_is_not_returned(agent: Agent) -> None:
    """A denied output is an error in its place; of a stream after its last item."""
    seen: list[str] = []
    with capture(policies=[about("agent_output", tp.Deny("odd"))]) as captured:
        with pytest.raises(tp.PolicyViolationError, match="p denied the output of Echo: odd"):
            await items(agent, "hello", seen)
        outcome = captured.tags("Echo.execute")["outcome"]
    assert (["ec", "ho hello"] if agent in STREAMS else []) == seen
    assert (["hello"], "blocked") == (RAN, outcome)


@pytest.mark.parametrize("agent", KINDS)
async def test_denied_input_is_replaced(agent: Agent) -> None:
    """The caller gets the replacement, of a stream as its one item; the body does not run, the outcome is blocked."""
    policy = tp.Policy(lambda _: False, "p", moments=["agent_input"], on_deny="replace", replacement="no")
    with capture(policies=[policy]) as captured:
        given = await items(agent, "hello")
        assert {"blocked"} == {captured.tags(name)["outcome"] for name in ("Echo.execute", "workflow.run")}
    assert (["no"], []) == (given, RAN)


@pytest.mark.parametrize("agent", KINDS)
async def test_denied_output_is_replaced(agent: Agent) -> None:
    """The caller gets the replacement; of a stream after what has gone out."""
    with capture(policies=[about("agent_output", tp.Deny("odd", replacement="no"))]) as captured:
        given = await items(agent, "hello")
        assert "blocked" == captured.tags("Echo.execute")["outcome"]
    assert (["ec", "ho hello", "no"] if agent in STREAMS else ["no"]) == given


def test_a_denied_tool_is_not_called() -> None:
    """A denied tool call is an error in the tool's place, blocked like the agent that lets it pass."""
    with capture(policies=[about("tool_call", tp.Deny("odd", "rule-7"))]) as captured:
        with pytest.raises(tp.PolicyViolationError, match=r"p denied a call of delete_task: \[rule-7\] odd"):
            PlannerAgent().run("x")
        outcomes = {name: captured.tags(name)["outcome"] for name in captured.names()}
    assert {"delete_task": "blocked", "PlannerAgent.execute": "blocked", "workflow.run": "blocked"} == outcomes


def test_a_denied_tool_can_be_replaced() -> None:
    """With a replacement the agent goes on; only the tool call is blocked."""
    with capture(policies=[about("tool_call", tp.Deny("odd", replacement="not done"))]) as captured:
        assert "not done for x" == PlannerAgent().run("x")
        outcomes = {name: captured.tags(name)["outcome"] for name in captured.names()}
    assert {"delete_task": "blocked", "PlannerAgent.execute": "success", "workflow.run": "success"} == outcomes


def test_the_policys_own_error_is_what_the_caller_sees() -> None:
    """A PolicyViolationError that a policy raises is a denial, and reaches the caller as it is."""
    error = tp.PolicyViolationError("mine", policy="p", reason="because")
    with capture(policies=[about("agent_input", error)]) as captured:
        with pytest.raises(tp.PolicyViolationError) as caught:
            PlannerAgent().run("x")
        assert 1 == captured.metrics.get_counter("policy.violations.total")
    assert caught.value is error


def test_a_denied_input_reaches_no_model(server: EmbeddedServer, client: OpenAI) -> None:
    """Where the input is denied, nothing is sent."""

    @tp.observed_agent
    def ask(text: str) -> str | None:
        reply = client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": text}])
        return reply.choices[0].message.content

    with capture(policies=[tp.Keywords(["delete"])]):
        with pytest.raises(tp.PolicyViolationError):
            ask("delete it")
        assert [] == server.requests
        ask("undelete it")
    assert 1 == len(server.requests)


# --- who is asked -------------------------------------------------------------------------------


def test_what_a_policy_is_told() -> None:
    """A subject says when, who, with what, and in which run."""
    seen: list[tp.Subject] = []
    around = tp.workflow("triage", request_id="req-9", session_id="s-1", user_id="u-1")
    with capture(policies=[seen.append]), around:
        PlannerAgent().run("x")
    assert [
        ("agent_input", "PlannerAgent", None, {"goal": "x"}, "x"),
        ("tool_call", "PlannerAgent", "delete_task", {"number": 3, "force": True}, "3"),
        ("agent_output", "PlannerAgent", None, "deleted 3 True for x", "deleted 3 True for x"),
    ] == [(each.moment, each.agent, each.tool, each.value, each.text) for each in seen]
    assert {("triage", "req-9", "s-1", "u-1")} == {
        (each.workflow, each.request_id, each.session_id, each.user_id) for each in seen
    }
    assert 1 == len({id(each.run) for each in seen})
    assert ({"number": 3, "force": True}, {}) == (seen[1].arguments, seen[2].arguments)


def test_arguments_without_names_have_places() -> None:
    """What a function takes as ``*args`` is known by place."""
    seen: list[dict[str, Any]] = []

    @tp.observed_tool
    def add(*numbers: int) -> int:
        return sum(numbers)

    with capture(policies=[lambda subject: seen.append(subject.arguments)]):
        add(1, 2)
    assert [{"0": 1, "1": 2}] == seen


def test_a_subject_does_not_show_what_was_said() -> None:
    """The repr of a subject, which is soon in a log, holds no content."""
    seen: list[str] = []
    with capture(policies=[lambda subject: seen.append(repr(subject))]):
        PlannerAgent().run("secret")
    assert "Subject(moment='agent_input', agent='PlannerAgent', tool=None)" == seen[0]
    assert [] == [each for each in seen if "secret" in each]


@pytest.mark.parametrize(
    ("narrowed", "asked"),
    [
        ({}, ["agent_input", "tool_call", "agent_output"]),
        ({"moments": ["agent_output", "tool_call"]}, ["tool_call", "agent_output"]),
        ({"agents": ["PlannerAgent"]}, ["agent_input", "tool_call", "agent_output"]),
        ({"agents": ["OtherAgent"]}, []),
        ({"tools": ["delete_task"]}, ["tool_call"]),
        ({"tools": ["other"]}, []),
    ],
)
def test_a_policy_is_asked_where_it_says(narrowed: dict[str, Any], asked: list[str]) -> None:
    """Moments, agents and tools narrow down when a policy is asked."""
    seen: list[str] = []
    with capture(policies=[tp.Policy(lambda subject: seen.append(subject.moment), "p", **narrowed)]):
        PlannerAgent().run("x")
    assert asked == seen


def test_the_first_denial_is_the_last_word() -> None:
    """Policies are asked in their order, and none after one that denied."""
    asked: list[str] = []

    def ask(name: str, answer: object) -> tp.Policy:
        return tp.Policy(lambda _: (asked.append(name), answer)[1], name)

    with capture(policies=[ask("a", None), ask("b", tp.Flag("odd")), ask("c", "no"), ask("d", None)]) as captured:
        with pytest.raises(tp.PolicyViolationError, match="c denied"):
            PlannerAgent().run("x")
        assert 2 == captured.metrics.get_counter("policy.violations.total")
    assert ["a", "b", "c"] == asked


@pytest.mark.parametrize("agent", KINDS)
async def test_a_policy_may_be_async(agent: Agent) -> None:
    """An async policy is awaited around any agent, in the agent's own loop where there is one."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def ask(subject: tp.Subject) -> tp.Deny | None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return tp.Deny("odd") if subject.text == "bad" else None

    with capture(policies=[ask]):
        assert "echo good" == "".join(await items(agent, "good"))
        with pytest.raises(tp.PolicyViolationError, match="ask denied"):
            await items(agent, "bad")
    assert ["good"] == RAN
    if agent.__name__ in {"coroutine", "async_generator"}:
        assert {asyncio.get_running_loop()} == set(loops)


def test_an_object_can_be_a_policy() -> None:
    """An object that can be called is a policy, under its own name and moments."""

    class Engine:
        name = "engine"
        moments = ("tool_call",)

        async def __call__(self, subject: tp.Subject) -> bool:
            return subject.tool != "delete_task"

    refused = pytest.raises(tp.PolicyViolationError, match="engine denied a call of delete_task")
    with capture(policies=[Engine()]), refused:
        PlannerAgent().run("x")


def test_what_a_check_does_is_not_checked() -> None:
    """An agent that judges for a policy is not judged itself, or there would be no end."""

    @tp.observed_agent
    def judge(text: str) -> bool:
        return "bad" not in text

    with capture(policies=[lambda subject: judge(subject.text)]) as captured:
        assert "deleted 3 True for x" == PlannerAgent().run("x")
        with pytest.raises(tp.PolicyViolationError):
            PlannerAgent().run("bad")
        assert 4 == captured.names().count("judge.execute")


def test_a_nested_method_is_asked_about_once() -> None:
    """``run()`` that calls ``execute()`` is one run, and judged once."""
    seen: list[str] = []

    @tp.observed_agent
    class Nested:
        def run(self, text: str) -> str:
            return self.execute(text)

        def execute(self, text: str) -> str:
            return text

    with capture(policies=[tp.Policy(lambda subject: seen.append(subject.moment), "p")]):
        Nested().run("x")
    assert ["agent_input", "agent_output"] == seen


# --- streams ------------------------------------------------------------------------------------


async def test_a_stream_is_judged_whole() -> None:
    """What a stream yielded in pieces is put together before it is judged."""
    seen: list[Any] = []
    for agent in STREAMS:
        with capture(policies=[tp.Policy(lambda subject: seen.append(subject.value), "p", moments=["agent_output"])]):
            await items(agent, "hello")
    assert ["echo hello"] * len(STREAMS) == seen


def test_a_generator_keeps_its_protocol() -> None:
    """Values sent in, errors thrown in and the value returned pass through the checks."""

    @tp.observed_agent
    def talk(text: str) -> Any:
        try:
            answer = yield text
        except KeyError:
            answer = "caught"
        yield answer
        return "done"

    def all_of(first: Callable[[Any], Any]) -> tuple[Any, Any]:
        talking = talk("hi")
        next(talking)
        item = first(talking)
        with pytest.raises(StopIteration) as stop:
            next(talking)
        return item, stop.value.value

    seen: list[Any] = []
    with capture(policies=[tp.Policy(lambda subject: seen.append(subject.value), "p", moments=["agent_output"])]):
        assert ("sent", "done") == all_of(lambda talking: talking.send("sent"))
        assert ("caught", "done") == all_of(lambda talking: talking.throw(KeyError()))
    assert ["hisentdone", "hicaughtdone"] == seen


async def test_an_async_generator_keeps_its_protocol() -> None:
    """Values sent in and errors thrown in pass through the checks."""

    @tp.observed_agent
    async def talk(text: str) -> Any:
        try:
            answer = yield text
        except KeyError:
            answer = "caught"
        yield answer

    seen: list[Any] = []
    with capture(policies=[tp.Policy(lambda subject: seen.append(subject.value), "p", moments=["agent_output"])]):
        first, second = talk("hi"), talk("hi")
        await anext(first)
        await anext(second)
        assert ("sent", "caught") == (await first.asend("sent"), await second.athrow(KeyError()))
        for each in (first, second):
            with pytest.raises(StopAsyncIteration):
                await anext(each)
    assert ["hisent", "hicaught"] == seen


async def test_a_stream_that_is_left_is_not_judged() -> None:
    """A consumer that goes away early is not held up, and its stream is closed."""
    seen: list[str] = []
    closed: list[bool] = []

    @tp.observed_agent
    def endless(text: str) -> Iterator[str]:
        try:
            while True:
                yield text
        finally:
            closed.append(True)

    @tp.observed_agent
    async def aendless(text: str) -> Any:
        try:
            while True:
                yield text
        finally:
            closed.append(True)

    with capture(policies=[tp.Policy(lambda subject: seen.append(subject.moment), "p")]) as captured:
        one, two = endless("x"), aendless("x")
        next(one)
        one.close()  # type: ignore[attr-defined]
        await anext(two)
        await two.aclose()
        assert ["cancelled"] * 4 == [span.attributes["outcome"] for span in captured.spans if span.attributes]
    assert (["agent_input"] * 2, [True] * 2) == (seen, closed)


async def test_an_sdk_stream_is_passed_on_unchecked(client: OpenAI, aclient: AsyncOpenAI) -> None:
    """A stream of the SDK that an agent returns stays what it is; the run counts as unchecked."""
    given: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    @tp.observed_agent
    def ask() -> Any:
        return client.chat.completions.create(**given)

    @tp.observed_agent
    async def aask() -> Any:
        return await aclient.chat.completions.create(**given)

    with capture(policies=[about("agent_output", False)]) as captured:
        assert [] != list(ask())
        assert [] != [chunk async for chunk in await aask()]
        signals = captured.golden_signals()
    assert (2, 0, 2) == (signals.runs, signals.checked_runs, signals.unchecked_runs)


# --- checks that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("answer", [ValueError("secret"), 7, tp.BlockedError("of something else")])
async def test_a_failed_check_lets_the_run_go_on(agent: Agent, answer: object) -> None:
    """A policy that raises or answers nonsense decided nothing: that is told and counted, and the run goes on."""
    with capture(policies=[about("agent_input", answer)]) as captured:
        assert "echo hello" == "".join(await items(agent, "hello"))
        signals = captured.golden_signals()
        (line,) = [line for line in captured.logs if line["category"] == "decision"]
    assert ("policy.decided", "ERROR", "p", "fail") == tuple(
        line[name] for name in ("event_name", "level", "policy", "decision")
    )
    kind = "TypeError" if answer == 7 else type(answer).__name__
    assert line["reason"].startswith(f"[check_failed] {kind} in ")
    assert "secret" not in str(captured.logs)
    assert (0, 0, 1, 0) == (
        signals.violations, signals.checked_runs, signals.check_failed_runs, signals.unchecked_runs,
    )  # fmt: skip
    assert (0.0, "warning") == (
        signals.policy_violation_rate_percent, signals.verdicts["policy_violation_rate_percent"],
    )  # fmt: skip
    assert "0 counted, 0 of 1 runs checked, 1 could not be checked" in str(signals)


def test_a_failed_check_denies_where_that_was_asked_for() -> None:
    """With fail_closed nobody passes unjudged; as no rule was broken, it is no violation."""
    policy = tp.Policy(lambda _: 1 / 0, "p", moments=["tool_call"], fail_closed=True)
    with capture(policies=[policy]) as captured:
        with pytest.raises(tp.PolicyViolationError, match=r"\[check_failed\] ZeroDivisionError in test_policy.py:\d+"):
            PlannerAgent().run("x")
        signals = captured.golden_signals()
        (line,) = [line for line in captured.logs if line["category"] == "decision"]
    assert (0, 1) == (signals.violations, signals.check_failed_runs)
    assert ("tool.denied", "block") == (line["event_name"], line["decision"])


def test_later_policies_are_asked_after_a_failure() -> None:
    """One policy that fails does not silence the others."""
    with capture(policies=[about("agent_input", ValueError()), tp.Keywords(["x"])]) as captured:
        with pytest.raises(tp.PolicyViolationError):
            PlannerAgent().run("x")
        signals = captured.golden_signals()
    assert (1, 1) == (signals.violations, signals.check_failed_runs)


def test_an_order_to_stop_passes_through_a_policy() -> None:
    """What is no ``Exception`` is an order, not a failed check."""

    def ask(_: tp.Subject) -> None:
        raise KeyboardInterrupt

    with capture(policies=[ask]) as captured:
        with pytest.raises(KeyboardInterrupt):
            PlannerAgent().run("x")
        assert "cancelled" == captured.tags("PlannerAgent.execute")["outcome"]


@pytest.mark.parametrize("agent", KINDS)
@pytest.mark.parametrize("broken", ["begin", "Inspection"])
async def test_an_error_of_our_own_is_not_the_callers(
    agent: Agent, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where our own code fails, the agent runs as if there were no policy, and the error is counted."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(_inspection if broken == "begin" else _checks, broken, fails)
    with capture(policies=[about("agent_input", False)], reraise=False) as captured:
        assert "echo hello" == "".join(await items(agent, "hello"))
        assert {"checks": 1} == captured.handle.health().errors_swallowed


# --- the golden signals -------------------------------------------------------------------------


def test_rates_say_how_many_runs_were_checked() -> None:
    """Checked, unchecked and failed runs are told apart; a violation is one, in its one family."""

    def ask(subject: tp.Subject) -> str | None:
        if "fail" in subject.text:
            raise ValueError
        return "odd" if "bad" in subject.text else None

    @tp.observed_agent
    def unchecked(text: str) -> str:
        return text

    with capture(policies=[tp.Policy(ask, "p", moments=["agent_input"], agents=["PlannerAgent"])]) as captured:
        for goal in ("good", "good", "bad", "fail", "good"):
            with_error = pytest.raises(tp.PolicyViolationError) if goal == "bad" else None
            if with_error is None:
                PlannerAgent().run(goal)
            else:
                with with_error:
                    PlannerAgent().run(goal)
        for _ in range(5):
            unchecked("bad")
        signals, text = captured.golden_signals(), captured.prometheus_text
        of_agent = captured.golden_signals(agent="PlannerAgent")
        total, own = (
            captured.metrics.get_counter(name)
            for name in ("policy.violations.total", "agent.PlannerAgent.policy.violations")
        )
    assert (10, 4, 1, 5) == (
        signals.runs, signals.checked_runs, signals.check_failed_runs, signals.unchecked_runs,
    )  # fmt: skip
    assert (10.0, 25.0) == (
        signals.policy_violation_rate_percent,
        signals.policy_violation_rate_of_checked_percent,
    )
    assert 10.0 == signals.as_dict()["policy_violation_rate_percent"]
    assert "1 counted, 4 of 10 runs checked, 1 could not be checked" in str(signals)
    assert (5, 4, 1, 0) == (
        of_agent.runs, of_agent.checked_runs, of_agent.check_failed_runs, of_agent.unchecked_runs,
    )  # fmt: skip
    assert (1, 1) == (total, own)
    assert 'taskpilot_policy_violations_total{agent="PlannerAgent",policy="p"} 1.0' in text


def test_without_checks_no_rate_of_checked_runs() -> None:
    """Where nobody looked, the rate among checked runs is unknown."""
    with capture() as captured:
        PlannerAgent().run("x")
        signals = captured.golden_signals()
    assert (None, 0, 1) == (
        signals.policy_violation_rate_of_checked_percent, signals.checked_runs, signals.unchecked_runs,
    )  # fmt: skip


def test_a_check_beneath_counts_for_all_runs_around() -> None:
    """A workflow is checked where one of its tool calls was, and failed where one check failed."""
    with capture(policies=[tp.Policy(lambda _: None, "p", moments=["tool_call"])]) as captured:
        with tp.workflow("triage"):
            PlannerAgent().run("x")
        assert 1 == captured.golden_signals().checked_runs
        assert 1 == captured.golden_signals(agent="PlannerAgent").checked_runs


# --- definitions --------------------------------------------------------------------------------


def silent(_: tp.Subject) -> None:
    """Allow."""


@pytest.mark.parametrize(
    ("define", "said"),
    [
        (lambda: tp.Policy("x"), "ask='x'"),  # type: ignore[arg-type]
        (lambda: tp.Policy(lambda: None), "takes one Subject"),  # type: ignore[arg-type,misc]
        (lambda: tp.Policy(len), "takes one Subject"),  # type: ignore[arg-type]
        (lambda: tp.Policy(silent, " "), "name=' '"),
        (lambda: tp.Policy(silent, moments=["tool_cal"]), "moments="),  # type: ignore[list-item]
        (lambda: tp.Policy(silent, moments=[]), "moments="),
        (lambda: tp.Policy(silent, agents="PlannerAgent"), "agents='PlannerAgent'"),
        (lambda: tp.Policy(silent, tools="add"), "tools='add'"),
        (lambda: tp.Policy(silent, on_deny="replaced"), "did you mean 'replace'"),  # type: ignore[arg-type]
        (lambda: tp.Policy(silent, replacement="no"), 'on_deny="replace"'),
        (lambda: tp.Policy(silent, fail_closed=1), "fail_closed=1"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_definition_is_refused(define: Callable[[], object], said: str) -> None:
    """A wrong field is named, with what would be right."""
    with pytest.raises(tp.ConfigurationError) as caught:
        define()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "policies", [["no function"], [3], "policies.toml", [tp.Guardrail("g", check_input=str.isascii)]]
)
def test_what_is_no_policy_is_refused_at_the_start(policies: Any) -> None:
    """``instrument()`` refuses a list with something else in it."""
    with pytest.raises(tp.ConfigurationError, match="policies"), capture(policies=policies):
        pass


def test_names_of_bare_policies() -> None:
    """A bare policy is called after its rule, its function or its class."""

    def my_rule(_: tp.Subject) -> None: ...

    assert ["my_rule", "keywords", "mine"] == [
        tp.Policy(each).name for each in (my_rule, tp.Keywords(["a"]), tp.Keywords(["a"], name="mine"))
    ]
