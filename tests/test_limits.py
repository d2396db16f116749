"""Token limits: the model's own, noticed without being asked, and those that an application sets."""

import json
import threading
from contextvars import copy_context
from functools import partial
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mock_openai import async_client, chunks, completion, event_response, json_response, sync_client

import taskpilot_instrument as tp
from taskpilot_instrument import TokenLimit, TokenLimitError, TokenUsage, semconv
from taskpilot_instrument._rates import Sliding
from taskpilot_instrument._token_watch import is_context_length_error
from taskpilot_instrument.embedded import EmbeddedServer, Reply
from taskpilot_instrument.testing import Captured, capture

pytestmark = pytest.mark.openai

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
ASK: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}
WINDOW = 128_000


def hits(captured: Captured) -> dict[tuple[str, str], int]:
    """Return how often each limit of each model was hit."""
    return {
        (sample.labels["model"], sample.labels["limit"]): int(sample.value)
        for family in captured.handle.metrics.families.collect()
        for sample in family.samples
        if sample.name == semconv.M_TOKEN_LIMIT_HITS
    }


def lines(captured: Captured) -> list[dict[str, Any]]:
    """Return the log lines about token limits."""
    return [line for line in captured.logs if line["event_name"] == "token_limit.exceeded"]


# --- the model's own limits ---------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["length", "max_tokens", "max_output_tokens"])
def test_an_answer_cut_off(captured: Captured, server: EmbeddedServer, client: openai.OpenAI, reason: str) -> None:
    """Each provider's word for it is understood; it counts once, is one line, and an event of the call's own span."""
    server.script(Reply("cut", usage=TokenUsage(10, 5), finish_reason=reason), Reply("whole", usage=TokenUsage(10, 5)))
    with tp.workflow("triage"):
        client.chat.completions.create(**ASK)
        client.chat.completions.create(**ASK)

    assert {("gpt-4o-mini", "finish_length"): 1} == hits(captured)
    (line,) = lines(captured)
    assert ("WARNING", "error", "gpt-4o-mini", "triage", "finish_length") == tuple(
        line[name] for name in ("level", "category", "model", "workflow", "reason")
    )
    first = next(span for span in captured.spans if span.name.startswith("chat"))
    assert ["token_limit.exceeded"] == [event.name for event in first.events]
    assert f"{first.context.span_id:016x}" == line["span_id"]


def test_a_response_that_is_incomplete(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The Responses API says it in another way."""
    server.script(Reply("cut", usage=TokenUsage(10, 5), finish_reason="length"))
    client.responses.create(model="gpt-4o-mini", input="hello")
    assert {("gpt-4o-mini", "finish_length"): 1} == hits(captured)


@pytest.mark.parametrize(
    ("given", "made", "expected"),
    [(WINDOW * 80 // 100 - 1, 0, 0), (WINDOW * 80 // 100, 0, 1), (WINDOW * 80 // 100 - 50, 50, 1), (WINDOW, 10, 1)],
)
def test_context_window_nearly_full(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, given: int, made: int, expected: int
) -> None:
    """Input and output share the window; from 80 % of it on, it counts."""
    server.script(Reply("ok", usage=TokenUsage(given, made)))
    client.chat.completions.create(**ASK)
    assert ({("gpt-4o-mini", "context_window"): 1} if expected else {}) == hits(captured)
    assert expected == len(lines(captured))


def test_window_and_length_count_each_once(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """One call may meet two limits."""
    server.script(Reply("cut", usage=TokenUsage(WINDOW - 10, 10), finish_reason="length"))
    client.chat.completions.create(**ASK)
    assert {("gpt-4o-mini", "context_window"): 1, ("gpt-4o-mini", "finish_length"): 1} == hits(captured)
    assert ["finish_length", "context_window: 100 % of the context window of 128000 tokens"] == [
        line["reason"] for line in lines(captured)
    ]


def test_window_of_an_unknown_model(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Where nobody says how large the window is, nothing is said."""
    server.script(Reply("ok", usage=TokenUsage(10_000_000, 1), model="my-own"))
    client.chat.completions.create(model="my-own", messages=MESSAGES)
    assert {} == hits(captured)


def test_several_answers_have_a_window_each(captured: Captured) -> None:
    """The output of a call is shared by its answers, of which none sees the others."""
    body = json.loads(
        completion(usage={"prompt_tokens": 10_000, "completion_tokens": 100_000, "total_tokens": 110_000})
    )
    body["choices"] = [{**body["choices"][0], "index": place} for place in range(4)]
    client = sync_client(lambda _request: json_response(json.dumps(body).encode()))
    client.chat.completions.create(**ASK, n=4)
    assert {} == hits(captured)


def test_inputs_of_embeddings_have_a_window_each(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """A call with many texts may use more than the window, which holds for each."""
    server.script(Reply(usage=TokenUsage(100_000, None)))
    client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert {} == hits(captured)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_streams_are_noticed_too(captured: Captured, asynchronous: bool) -> None:
    """The usage of a stream comes last, and is looked at then."""
    usage = {"prompt_tokens": WINDOW, "completion_tokens": 5, "total_tokens": WINDOW + 5}
    if asynchronous:
        aclient = async_client(lambda _request: event_response(*chunks(usage=usage)))
        async for _ in await aclient.chat.completions.create(**ASK, stream=True):
            pass
    else:
        client = sync_client(lambda _request: event_response(*chunks(usage=usage)))
        list(client.chat.completions.create(**ASK, stream=True))
    assert {("gpt-4o-mini", "context_window"): 1} == hits(captured)


OPENAI = (
    "This model's maximum context length is 128000 tokens. However, your messages resulted in 192041 tokens. "
    "Please reduce the length of the messages."
)
#: What providers answer, with and without a code of their own.
TOO_LONG: list[tuple[str, dict[str, Any]]] = [
    ("OpenAI, Azure", {"message": OPENAI, "code": "context_length_exceeded"}),
    ("OpenAI responses", {"message": "Your input exceeds the context window of this model.", "code": None}),
    ("Azure", {"message": "Input tokens exceed the configured limit of 272000 tokens.", "code": None}),
    ("vLLM", {"message": OPENAI, "type": "BadRequestError", "code": 400}),
    ("vLLM, newer", {"message": "The decoder prompt (length 9) is longer than the maximum model length of 8."}),
    ("SGLang", {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."}),
    ("LiteLLM", {"message": "litellm.ContextWindowExceededError: litellm.BadRequestError: too much", "code": "400"}),
    ("llama.cpp", {"message": "too large", "type": "exceed_context_size_error", "code": 400}),
    ("Ollama", {"message": "request (9 tokens) exceeds the available context size (8 tokens), try increasing it"}),
    ("Ollama, embeddings", {"message": "the input length exceeds the context length"}),
    ("Anthropic", {"message": "prompt is too long: 213462 tokens > 200000 maximum"}),
    ("Anthropic, output", {"message": "input length and `max_tokens` exceed context limit: 174167 + 64000 > 200000"}),
    ("Gemini", {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}),
    ("xAI", {"message": "This model's maximum prompt length is 8 but the request contains 9 tokens."}),
    ("Mistral", {"message": "Prompt contains 9 tokens, too large for model with 8 maximum context length"}),
    ("GitHub", {"message": "Request body too large.", "code": "tokens_limit_reached"}),
]
#: What reads alike and is something else.
OTHER_ERRORS: list[tuple[str, int, dict[str, Any]]] = [
    ("tokens a minute", 429, {"message": "Request too large: tokens per min (TPM): Limit 30000, Requested 60000."}),
    ("quota in the same words", 429, {"message": OPENAI, "code": "rate_limit_exceeded"}),
    ("an argument", 400, {"message": "'user': string too long. Expected a string with maximum length 64."}),
    ("no such model", 404, {"message": "The model does not exist", "code": "model_not_found"}),
]


@pytest.mark.parametrize(("provider", "error"), TOO_LONG, ids=[provider for provider, _ in TOO_LONG])
def test_context_length_errors(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI, provider: str, error: dict[str, Any]
) -> None:
    """Whatever a provider calls it, a request that is too long counts as a full context window."""
    server.script(Reply.raw(json.dumps({"error": error}).encode(), status=400))
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ASK)
    assert {("gpt-4o-mini", "context_window"): 1} == hits(captured)
    assert ["token_limit.exceeded", "llm.failed"] == [line["event_name"] for line in captured.logs]


@pytest.mark.parametrize(("what", "status", "error"), OTHER_ERRORS, ids=[what for what, _, _ in OTHER_ERRORS])
def test_errors_that_read_alike(
    captured: Captured, server: EmbeddedServer, what: str, status: int, error: dict[str, Any]
) -> None:
    """A rate limit of tokens, or a long argument, is no full context window."""
    server.script(Reply.raw(json.dumps({"error": error}).encode(), status=status))
    client = openai.OpenAI(api_key="sk-test", base_url=server.url, max_retries=0)
    with client, pytest.raises(openai.APIStatusError):
        client.chat.completions.create(**ASK)
    assert {} == hits(captured)


def test_a_failed_response_that_was_too_long(captured: Captured, server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The Responses API may fail without an exception."""
    document = {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "failed", "model": "gpt-4o-mini",
        "error": {"code": "context_length_exceeded", "message": "too long"}, "output": [], "tools": [],
        "parallel_tool_calls": False, "tool_choice": "auto",
    }  # fmt: skip
    server.script(Reply.raw(json.dumps(document).encode()))
    client.responses.create(model="gpt-4o-mini", input="hello")
    assert {("gpt-4o-mini", "context_window"): 1} == hits(captured)


@given(st.text(max_size=200), st.one_of(st.none(), st.text(max_size=20), st.integers()))
def test_any_error_can_be_asked_about(words: str, code: Any) -> None:
    """An exception of any kind is looked at without a failure, and one about something else is let be."""
    error = RuntimeError(words)
    error.code = code  # type: ignore[attr-defined] # as a client's error has one
    assert isinstance(is_context_length_error(error), bool)


def test_calls_told_by_hand(captured: Captured) -> None:
    """A call that no patch has seen meets the same limits, and they count where it counts."""
    result = {
        "model": "gpt-4o-mini", "usage": {"prompt_tokens": WINDOW, "completion_tokens": 1},
        "choices": [{"finish_reason": "length"}],
    }  # fmt: skip
    standalone = tp.MetricsBackend()
    with tp.workflow("triage"):
        tp.track_llm_metrics(result, "PlannerAgent", captured.handle.metrics)
        tp.track_llm_metrics(result, "PlannerAgent", standalone)
    standalone.close()
    assert {("gpt-4o-mini", "context_window"): 1, ("gpt-4o-mini", "finish_length"): 1} == hits(captured)
    assert 2 == len(lines(captured))


# --- limits for each call -----------------------------------------------------------------------


def test_a_call_that_may_use_too_much_is_not_sent(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """It is refused before any request, with the outcome blocked, one count, one line and an event of its span."""
    with capture(token_limits=[TokenLimit(100, on_exceed="block", name="small calls")]) as captured:
        with pytest.raises(TokenLimitError, match=r"small calls.*may use \d+, and 100 are allowed"):
            client.chat.completions.create(**ASK, max_tokens=99)
        assert [] == server.requests
        client.chat.completions.create(**ASK, max_tokens=50)
        assert 1 == len(server.requests)

        assert {("gpt-4o-mini", "configured"): 1} == hits(captured)
        (line,) = lines(captured)
        assert ("small calls", "block", "gpt-4o-mini") == (line["policy"], line["decision"], line["model"])
        refused = next(span for span in captured.spans if span.attributes["outcome"] == "blocked")
        assert ["token_limit.exceeded"] == [event.name for event in refused.events]


async def test_async_calls_and_streams_are_refused_alike(server: EmbeddedServer, aclient: openai.AsyncOpenAI) -> None:
    """There is one flow for all kinds of calls."""
    with capture(token_limits=[TokenLimit(10, on_exceed="block")]):
        for more in ({}, {"stream": True}):
            with pytest.raises(TokenLimitError):
                await aclient.chat.completions.create(**ASK, max_tokens=99, **more)
        with pytest.raises(TokenLimitError):
            await aclient.responses.create(model="gpt-4o-mini", input="hello " * 100)
    assert [] == server.requests


@pytest.mark.parametrize("on_exceed", ["warn", "block"])
def test_what_a_call_really_used_is_judged_too(server: EmbeddedServer, client: openai.OpenAI, on_exceed: Any) -> None:
    """Output that the request sets no bound to is not known before; afterwards it is."""
    server.script(Reply("much", usage=TokenUsage(10, 200)), Reply("enough", usage=TokenUsage(10, 90)))
    with capture(token_limits=[TokenLimit(100, on_exceed=on_exceed)]) as captured:
        client.chat.completions.create(**ASK)
        client.chat.completions.create(**ASK)
        assert {("gpt-4o-mini", "configured"): 1} == hits(captured)
        (line,) = lines(captured)
        assert ("warn", "configured: the call used 210") == (line["decision"], line["reason"])


@pytest.mark.parametrize(("tokens", "sent"), [(99, 0), (100, 1)])
def test_a_call_may_ask_for_as_many_as_are_allowed(
    server: EmbeddedServer, client: openai.OpenAI, tokens: int, sent: int
) -> None:
    """The limit itself is within the limit."""
    server.script(Reply("ok", usage=TokenUsage(10, 5)))
    with capture(token_limits=[TokenLimit(tokens, count="output", on_exceed="block")]):
        try:
            client.chat.completions.create(**ASK, max_tokens=100)
        except TokenLimitError:
            assert 0 == sent
    assert sent == len(server.requests)


@pytest.mark.parametrize("per", ["call", "run", "agent_minute"])
@pytest.mark.parametrize(("used", "told"), [(100, 0), (101, 1)])
def test_what_uses_the_limit_up_is_not_beyond_it(
    server: EmbeddedServer, client: openai.OpenAI, per: Any, used: int, told: int
) -> None:
    """It is told of from the first token on that is too many."""
    server.script(Reply("ok", usage=TokenUsage(used - 5, 5)))
    with capture(token_limits=[TokenLimit(100, per=per)]) as captured, tp.workflow("triage"):
        client.chat.completions.create(**ASK)
    assert told == len(lines(captured))


def test_a_warning_limit_is_no_gate(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """It goes by what was used, never by an estimate: a high bound on the output alone is no hit."""
    server.script(Reply("little", usage=TokenUsage(10, 5)))
    with capture(token_limits=[TokenLimit(100)]) as captured:
        client.chat.completions.create(**ASK, max_tokens=16_000)
        assert {} == hits(captured)
        assert () == captured.handle.parts.gates


@pytest.mark.parametrize(("count", "expected"), [("input", 0), ("output", 1), ("total", 1)])
def test_which_tokens_count(server: EmbeddedServer, client: openai.OpenAI, count: Any, expected: int) -> None:
    """Input, output, or both."""
    server.script(Reply("x", usage=TokenUsage(50, 60)))
    with capture(token_limits=[TokenLimit(55, count=count)]) as captured:
        client.chat.completions.create(**ASK)
        assert expected == sum(hits(captured).values())


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ({"agent": "Planner"}, 1), ({"agent": "Writer"}, 0), ({"workflow": "triage"}, 1), ({"workflow": "other"}, 0),
        ({"model": "gpt-4o-mini"}, 1), ({"model": "gpt-4o"}, 0), ({"agent": "Planner", "workflow": "other"}, 0),
    ],
)  # fmt: skip
def test_of_which_calls_a_limit_speaks(
    server: EmbeddedServer, client: openai.OpenAI, only: dict[str, str], expected: int
) -> None:
    """By agent, workflow and model; all that are given have to hold."""
    server.script(Reply("x", usage=TokenUsage(50, 60)))

    @tp.observed_agent(name="Planner")
    def plan() -> None:
        client.chat.completions.create(**ASK)

    with capture(token_limits=[TokenLimit(10, **only)]) as captured:
        with tp.workflow("triage"):
            plan()
        assert expected == sum(hits(captured).values())


# --- limits for a run ---------------------------------------------------------------------------


def test_a_looping_agent_stops(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Once a run has used its tokens up, its next call is refused, and the run ends as blocked."""
    server.script(*[Reply("again", usage=TokenUsage(40, 10)) for _ in range(9)])

    @tp.observed_agent(name="Planner")
    def loop() -> None:
        while True:
            client.chat.completions.create(**ASK)

    with capture(token_limits=[TokenLimit(120, per="run", on_exceed="block", name="a run")]) as captured:
        with pytest.raises(TokenLimitError, match="the run has used 150, and 120 are allowed"):
            loop()
        assert 3 == len(server.requests)
        assert {"blocked"} == {captured.tags(name)["outcome"] for name in ("Planner.execute", "workflow.run")}
        # Once because the run has used more, and once because a call was refused.
        assert ["warn", "block"] == [line["decision"] for line in lines(captured)]
        assert {("gpt-4o-mini", "configured"): 2} == hits(captured)


def test_runs_are_counted_apart(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The next run begins at zero."""
    with capture(token_limits=[TokenLimit(50, per="run", on_exceed="block")]):
        for _ in range(3):
            server.script(Reply("x", usage=TokenUsage(40, 10)))
            with tp.workflow("triage"):
                client.chat.completions.create(**ASK)
                with pytest.raises(TokenLimitError):
                    client.chat.completions.create(**ASK)
    assert 3 == len(server.requests)


def test_a_run_is_the_outermost_one(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Agents beneath a workflow share its tokens; with a name, a run of that name has its own."""
    server.script(*[Reply("x", usage=TokenUsage(40, 10)) for _ in range(6)])

    @tp.observed_agent(name="Planner")
    def plan() -> None:
        client.chat.completions.create(**ASK)

    @tp.observed_agent(name="Writer")
    def write() -> None:
        plan()  # what an agent beneath it uses is its own too
        client.chat.completions.create(**ASK)

    with capture(token_limits=[TokenLimit(150, per="run", on_exceed="block")]), tp.workflow("triage"):
        write()
        plan()
        with pytest.raises(TokenLimitError):
            plan()
    limits = [TokenLimit(50, per="run", agent="Writer", on_exceed="block")]
    with capture(token_limits=limits), tp.workflow("triage"):
        plan()
        plan()
        with pytest.raises(TokenLimitError):
            write()


def test_a_call_outside_of_runs_has_no_limit_per_run(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """There is nothing to add up."""
    with capture(token_limits=[TokenLimit(1, per="run", on_exceed="block")]):
        client.chat.completions.create(**ASK)
        client.chat.completions.create(**ASK)
    assert 2 == len(server.requests)


def test_a_run_is_told_of_once_however_many_threads_it_has(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """Calls of one run that end at the same time do not each say so."""
    server.script(*[Reply("x", usage=TokenUsage(40, 10), delay=0.05) for _ in range(8)])
    with capture(token_limits=[TokenLimit(60, per="run")], propagate_threads=True) as captured:
        with tp.workflow("triage"):
            ask = partial(client.chat.completions.create, **ASK)
            threads = [threading.Thread(target=copy_context().run, args=(ask,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert {("gpt-4o-mini", "configured"): 1} == hits(captured)


# --- limits for an agent and minute -------------------------------------------------------------


def test_an_agent_waits_for_the_minute_to_pass(server: EmbeddedServer, client: openai.OpenAI) -> None:
    """The window slides, agents have one each, and the refusal ends when enough of it has passed."""
    server.script(*[Reply("x", usage=TokenUsage(60, 0)) for _ in range(9)])

    def run(agent: str) -> None:
        tp.observed_agent(name=agent)(lambda: client.chat.completions.create(**ASK))()

    limits = [TokenLimit(100, per="agent_minute", on_exceed="block")]
    with capture(token_limits=limits, fake_clock=True) as captured:
        assert captured.clock is not None
        run("Planner")
        captured.clock.advance(30)
        run("Planner")
        with pytest.raises(TokenLimitError, match="the agent has used 120 within a minute, and 100 are allowed"):
            run("Planner")
        run("Writer")
        captured.clock.advance(31)  # the first call is a minute ago
        run("Planner")
        with pytest.raises(TokenLimitError):
            run("Planner")
        assert 4 == len(server.requests)
        # Twice beyond it without a pause in between counts once, and so do the two refusals each.
        assert ["warn", "block", "block"] == [line["decision"] for line in lines(captured)]


def test_an_agent_that_was_within_its_limit_again_is_told_of_again(
    server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """One hit for each time that it goes beyond the limit, not for each call."""
    server.script(*[Reply("x", usage=TokenUsage(60, 0)) for _ in range(9)])
    with capture(token_limits=[TokenLimit(100, per="agent_minute")], fake_clock=True) as captured:
        assert captured.clock is not None
        for pause in (0, 0, 0, 120, 0):
            captured.clock.advance(pause)
            client.chat.completions.create(**ASK)
        assert {("gpt-4o-mini", "configured"): 2} == hits(captured)


@given(
    st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 1_000)), max_size=60),
    st.integers(60_000, 3_600_000),
)
def test_a_sliding_sum_is_never_less_than_the_window_holds(steps: list[tuple[int, int]], window_ms: int) -> None:
    """It holds everything of the window, and nothing from more than a sixtieth before it, in at most 61 slots."""
    sliding, now, added = Sliding(window_ms * 1_000_000), 0, []
    for pause_ms, amount in steps:
        now += pause_ms * 1_000_000
        added.append((now, amount))
        total = sliding.add(now, amount)
        window_ns = window_ms * 1_000_000
        within = sum(amount for at, amount in added if at > now - window_ns)
        nearly = sum(amount for at, amount in added if at > now - window_ns * 61 / 60 - 1_000)
        assert within <= total <= nearly
        assert len(sliding._slots) <= 61


# --- definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tokens": 0}, "tokens=0"),
        ({"tokens": 1.5}, "tokens=1.5"),
        ({"tokens": True}, "tokens=True"),
        ({"per": "minute"}, "per='minute'.*agent_minute"),
        ({"count": "all"}, "count='all'.*total, input, output"),
        ({"on_exceed": "blok"}, "on_exceed='blok'.*did you mean 'block'"),
        ({"agent": ""}, "agent=''"),
        ({"name": 3}, "name=3"),
        ({"model": "m", "per": "run"}, "model='m'.*a run is counted whole"),
    ],
)
def test_wrong_definitions_are_refused(fields: dict[str, Any], named: str) -> None:
    """The message names the field and says what would be right."""
    with pytest.raises(tp.ConfigurationError, match=f"TokenLimit: {named}"):
        TokenLimit(**{"tokens": 1, **fields})


@pytest.mark.parametrize("given", ["limits.toml", 5, [TokenLimit(5), 5]])
def test_wrong_lists_are_refused(given: object) -> None:
    """What is no limit is refused when the application starts."""
    with pytest.raises(tp.ConfigurationError, match=r"token_limits: expected a list of TokenLimit\(…\)"):
        tp.Instrumentation(tp.Settings.resolve({"token_limits": given, "registry": None}, {}))


def test_limits_have_names() -> None:
    """A name is made from what a limit says."""
    assert "500 tokens per run triage" == TokenLimit(500, per="run", workflow="triage").name
    assert "9 output tokens per call" == TokenLimit(9, count="output").name
