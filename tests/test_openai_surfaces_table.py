"""Every public method of the installed openai client has a row, and every billable one is called for real."""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import openai
import pytest
from mock_openai import Body, async_client, event_response, httpx, json_response, sync_client
from openai_methods import ADMINISTRATION, ROWS, Bill, methods_of
from openai_scenarios import SCENARIOS, Scenario, body_of, stream_of

from taskpilot_instrument.testing import Captured

pytestmark = [pytest.mark.openai, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

CLIENT = openai.OpenAI(api_key="sk-test")
METHODS = [method for method in methods_of(CLIENT) if not method.startswith(ADMINISTRATION)]
#: How a call may be made: plain, raw, with the body left to be read; and each of them streamed.
FORMS = ("plain", "with_raw_response", "with_streaming_response")
#: Waits that a client's helpers make between two polls.
NO_WAIT = {"openai-poll-after-ms": "1"}
#: These drive a conversation of several requests, which tell their bill as the single ones do.
NOT_DRIVEN = {"beta.agents.sessions.stream"}


# --- the rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [CLIENT, openai.AsyncOpenAI(api_key="sk-test")], ids=["sync", "async"])
def test_every_method_has_a_row(client: Any) -> None:
    """A release that brings a method brings the question whether it is billed; answer it in ``openai_methods.py``."""
    assert [] == [name for name in methods_of(client) if not name.startswith(ADMINISTRATION) and name not in ROWS]


def test_every_billable_method_has_a_scenario() -> None:
    """What is said to be billed is called below."""
    billed = {name for name, row in ROWS.items() if row.bill in {Bill.AT_THE_CALL, Bill.WHEN_TOLD}}
    assert billed - NOT_DRIVEN == {scenario.method for scenario in SCENARIOS}


# --- the calls ----------------------------------------------------------------------------------


def answers_of(scenario: Scenario, *, streamed: bool) -> Any:
    """Return what answers the requests of a scenario, one after the other."""
    bodies = itertools.chain(scenario.answers, itertools.repeat(scenario.answers[-1] if scenario.answers else b""))

    def answer(_request: Any) -> Any:
        if streamed:
            return event_response(*stream_of(scenario.events))
        body = next(bodies)
        if isinstance(body, bytes):
            sort = "text/plain" if body.isascii() else "audio/mpeg"
            return httpx.Response(200, stream=Body(body), headers={"content-type": sort})
        response = json_response(body_of(body))
        response.headers.update(NO_WAIT)
        return response

    return answer


def bound(client: Any, method: str, form: str) -> Any:
    """Return the method in a form; skip where there is none."""
    resource, _, name = method.rpartition(".")
    for each in resource.split("."):
        client = getattr(client, each)
    found = getattr(client if form == "plain" else getattr(client, form), name, None)
    if found is None:
        pytest.skip(f"{method} has no {form}")
    return found


def call_sync(client: Any, scenario: Scenario, form: str, arguments: dict[str, Any]) -> None:
    """Make one call and take in all that it brings."""
    made = bound(client, scenario.method, form)(**arguments)
    if form == "with_streaming_response":
        with made as response:
            for _ in response.iter_bytes():
                pass
        return
    result = made.parse() if form == "with_raw_response" else made
    if scenario.is_stream or arguments.get("stream"):
        with result as stream:
            for _ in stream:
                pass


async def call_async(client: Any, scenario: Scenario, form: str, arguments: dict[str, Any]) -> None:
    """Make one call and take in all that it brings."""
    made = bound(client, scenario.method, form)(**arguments)
    if form == "with_streaming_response":
        async with made as response:
            async for _ in response.iter_bytes():
                pass
        return
    result = await made if inspect.isawaitable(made) else made
    if form == "with_raw_response":
        result = result.parse()
        result = await result if inspect.isawaitable(result) else result
    if scenario.is_stream or arguments.get("stream"):
        async with result as stream:
            async for _ in stream:
                pass


def cases() -> Iterator[Any]:
    """Yield each scenario in each form."""
    for number, (scenario, form) in enumerate(itertools.product(SCENARIOS, FORMS)):
        for streamed in (False, True):
            if (streamed and not scenario.events) or (scenario.is_stream and not streamed):
                continue
            if not streamed and not scenario.answers:
                continue
            words = [scenario.method, form, *(["events"] if streamed else []), str(number // len(FORMS))]
            yield pytest.param(scenario, form, streamed, id="-".join(words))


CASES = list(cases())


def assert_seen(captured: Captured, scenario: Scenario) -> None:
    """Assert that there is exactly one span with the bill, and what it must say."""
    every = [dict(span.attributes or {}) for span in captured.spans]
    unbilled = [tags for tags in every if tags.get("cost_source") is None]
    billed = every if scenario.source is None else [tags for tags in every if tags not in unbilled]
    assert (1, 1 + scenario.others) == (len(billed), len(every))
    (tags,) = billed
    tokens = None if scenario.tokens is None else (tags.get("input_tokens"), tags.get("output_tokens"))
    assert (scenario.model, scenario.operation) == (tags.get("model"), tags["gen_ai.operation.name"])
    assert scenario.tokens == tokens
    assert scenario.tokens is not None or "input_tokens" not in tags
    assert scenario.source == tags.get("cost_source")
    assert (None if scenario.usd is None else float(scenario.usd)) == tags.get("cost_usd")
    sample = captured.golden_signals().sample
    assert (scenario.usd or 0) == sample.spent_usd
    assert (int(scenario.source == "genai-prices"), int(scenario.source == "unknown")) == (
        sample.priced,
        sample.unpriced,
    )


def arguments_of(scenario: Scenario, *, streamed: bool) -> dict[str, Any]:
    """Return what to call with; skip where the installed client has no such method, or streams nothing there."""
    if scenario.method not in METHODS:
        pytest.skip(f"openai {openai.__version__} has no {scenario.method}")
    if not streamed or scenario.is_stream:
        return scenario.arguments
    parameters = inspect.signature(bound(CLIENT, scenario.method, "plain")).parameters
    if "stream" not in parameters:
        pytest.skip(f"{scenario.method} of openai {openai.__version__} does not stream")
    return {**scenario.arguments, "stream": True}


@pytest.mark.parametrize(("scenario", "form", "streamed"), CASES)
def test_each_billable_call_is_one_bill(captured: Captured, scenario: Scenario, form: str, *, streamed: bool) -> None:
    """One span has the provider's tokens and the right price, or says that it is unknown."""
    arguments = arguments_of(scenario, streamed=streamed)
    with sync_client(answers_of(scenario, streamed=streamed)) as client:
        call_sync(client, scenario, form, arguments)
    assert_seen(captured, scenario)


@pytest.mark.parametrize(("scenario", "form", "streamed"), CASES)
async def test_each_billable_call_is_one_bill_async(
    captured: Captured, scenario: Scenario, form: str, *, streamed: bool
) -> None:
    """The async client's calls are seen just so."""
    arguments = arguments_of(scenario, streamed=streamed)
    async with async_client(answers_of(scenario, streamed=streamed)) as client:
        await call_async(client, scenario, form, arguments)
    assert_seen(captured, scenario)


# --- what is not billed -------------------------------------------------------------------------

#: Helpers that wait for an answer which never comes here, read files, or take what no word can stand for.
_NOT_CALLED = ("poll", "upload", "wait", "connect", "stream", "unwrap", "verify", "for_result", "prepare")


def words_for(method: Any) -> dict[str, Any]:
    """Return a word for each argument that a method needs."""
    return {
        name: "x"
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    }


def test_what_is_not_billed_makes_no_span(captured: Captured) -> None:
    """Every other method is called with words for its arguments, and is sent, and leaves no span."""
    sent = []

    def answer(request: Any) -> Any:
        sent.append((request.method, request.url.path))
        return json_response(b'{"id": "x", "object": "list", "data": [], "status": "completed", "usage": null}')

    methods = [name for name in METHODS if ROWS[name].bill in {Bill.NEVER, Bill.ELSEWHERE} and "." in name]
    called = [name for name in methods if not any(word in name.rpartition(".")[2] for word in _NOT_CALLED)]
    with sync_client(answer) as client:
        for name in called:
            method = bound(client, name, "plain")
            with suppress(TypeError, ValueError, AttributeError, RuntimeError, openai.OpenAIError):
                method(**words_for(method))
    assert [] == [span.name for span in captured.spans]
    assert len(sent) > 0.9 * len(called)


def test_administration_makes_no_span(captured: Captured) -> None:
    """Nor does any method of an organization's administration."""
    names = [name for name in methods_of(CLIENT) if name.startswith(ADMINISTRATION)]
    if not names:
        pytest.skip(f"openai {openai.__version__} has no administration")
    with sync_client(lambda _: json_response(b'{"object": "list", "data": []}')) as client:
        client.admin_api_key = "sk-admin"
        for name in names:
            method = bound(client, name, "plain")
            with suppress(TypeError, ValueError, AttributeError, RuntimeError, openai.OpenAIError):
                method(**words_for(method))
    assert [] == [span.name for span in captured.spans]
