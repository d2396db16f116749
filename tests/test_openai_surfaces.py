"""The bills of the client beside chat: told later and counted once, hosted tools, gateways, and what is unknown."""

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import openai
import pytest
from mock_openai import async_client, event_response, httpx, json_response, sync_client
from openai_scenarios import (
    BATCH,
    CHAT_USAGE,
    COMPLETION,
    COST,
    MESSAGES,
    MODEL,
    RUN_EVENTS,
    USAGE,
    Event,
    body_of,
    response,
    run,
    stream_of,
)

import taskpilot_instrument as tp
from taskpilot_instrument import _bills
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.testing import Captured, capture

pytestmark = [pytest.mark.openai, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

QUEUED = response("queued", background=True)
RUNNING = response("in_progress", background=True)
DONE = response(background=True)


def billed(captured: Captured) -> list[tuple[Any, Any]]:
    """Return the tokens of every span that has any."""
    every = [dict(span.attributes or {}) for span in captured.spans]
    return [(tags["input_tokens"], tags["output_tokens"]) for tags in every if "input_tokens" in tags]


def only(captured: Captured) -> dict[str, Any]:
    """Return the tags of the only span."""
    (span,) = captured.spans
    return dict(span.attributes or {})


def answering(*answers: Any) -> Callable[[Any], Any]:
    """Return what gives these answers one after the other, the last one again and again; a list is a stream."""
    left = list(answers)

    def answer(_request: Any) -> Any:
        found = left.pop(0) if len(left) > 1 else left[0]
        return event_response(*stream_of(found)) if isinstance(found, list) else json_response(body_of(found))

    return answer


def events(*responses: dict[str, Any]) -> list[Event]:
    """Return the events of a response in the states that it goes through."""
    kinds = {"queued": "queued", "in_progress": "in_progress", "completed": "completed"}
    return [
        (None, {"type": f"response.{kinds[each['status']]}", "response": each, "sequence_number": number})
        for number, each in enumerate(responses)
    ]


# --- in the background --------------------------------------------------------------------------


def test_a_background_response_is_billed_once(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """However often it is retrieved, from how many threads, it is one bill; its creation is none, and not unknown."""
    queued = client.responses.create(model="gpt-4o-mini", input="Go", background=True)
    assert 0 == captured.golden_signals().sample.unpriced
    threads = [threading.Thread(target=client.responses.retrieve, args=(queued.id,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = client.responses.retrieve(queued.id)
    assert done.usage is not None
    assert [(done.usage.input_tokens, done.usage.output_tokens)] == billed(captured)
    assert 2 == len(captured.spans)
    assert (1, 0) == (captured.golden_signals().sample.priced, captured.golden_signals().sample.unpriced)


async def test_a_background_response_is_billed_once_async(captured: Captured, aclient: openai.AsyncOpenAI) -> None:
    """Tasks that ask at the same time count it once, also through raw responses."""
    queued = await aclient.responses.create(model="gpt-4o-mini", input="Go", background=True)
    raw = await aclient.responses.with_raw_response.retrieve(queued.id)
    assert "completed" == raw.parse().status
    await asyncio.gather(*(aclient.responses.retrieve(queued.id) for _ in range(4)))
    assert 1 == len(billed(captured))


def test_polling_makes_no_spans(captured: Captured) -> None:
    """Only the poll that first brings the usage is a span; it begins when that poll did, beneath the agent."""
    before = tp.health().calls_seen
    with sync_client(answering(QUEUED, *[RUNNING] * 50, DONE)) as client:

        @tp.observed_agent(name="poller")
        def poll() -> None:
            client.responses.create(model=MODEL, input="x", background=True)
            for _ in range(60):
                client.responses.retrieve("resp_1")

        poll()
    created, told, agent, _workflow = captured.spans
    assert "input_tokens" not in (created.attributes or {})
    assert [(150, 50)] == billed(captured)[:1]
    assert (told.parent.span_id if told.parent else None) == agent.context.span_id
    tags = dict(agent.attributes or {})
    assert (150, 50, float(COST), None) == (
        tags["input_tokens"], tags["output_tokens"], tags["cost_usd"], tags.get("cost_source"),
    )  # fmt: skip
    assert created.end_time <= told.start_time <= told.end_time <= agent.end_time
    assert (2, 2) == (tp.health().calls_seen - before, tp.health().calls_recorded)


def test_a_response_keeps_the_name_that_was_asked_for(captured: Captured) -> None:
    """The model that was asked for when it was created names the span and the series, also of what is told later."""
    dated = "gpt-4o-mini-2024-07-18"
    with sync_client(answering({**QUEUED, "model": dated}, {**DONE, "model": dated})) as client:
        client.responses.create(model=MODEL, input="x", background=True)
        client.responses.retrieve("resp_1")
    tags = dict(captured.spans[-1].attributes or {})
    assert (MODEL, MODEL, dated) == (tags["model"], tags["gen_ai.request.model"], tags["gen_ai.response.model"])


def test_a_foreground_response_is_not_billed_again(captured: Captured, client: openai.OpenAI) -> None:
    """A response that was counted when it was made is not counted when it is looked up."""
    made = client.responses.create(model="gpt-4o-mini", input="Go")
    client.responses.retrieve(made.id)
    assert 1 == len(captured.spans)
    assert 1 == captured.golden_signals().sample.priced


@pytest.mark.parametrize(("background", "bills"), [(True, 1), (False, 0), (None, 0)])
def test_what_another_process_made(captured: Captured, *, background: bool | None, bills: int) -> None:
    """A response of unknown origin is billed where it says that it ran in the background: else its maker was told."""
    with sync_client(answering(response(background=background))) as client:
        for _ in range(3):
            client.responses.retrieve("resp_1")
    assert bills == len(billed(captured)) == len(captured.spans)


def test_a_stream_that_broke_is_billed_when_it_is_asked_for(captured: Captured) -> None:
    """Whoever lost the stream of a response in the foreground, and looks it up, is told the usage after all."""
    with sync_client(answering(events(response("in_progress")), response())) as client:
        for _ in client.responses.create(model=MODEL, input="x", stream=True):
            pass
        assert [] == billed(captured)
        client.responses.retrieve("resp_1")
        client.responses.retrieve("resp_1")
    assert [(150, 50)] == billed(captured)
    assert 1 == captured.golden_signals().sample.unpriced  # the stream itself, of which nobody knows better


def test_a_background_stream_that_was_left_is_not_unknown(captured: Captured) -> None:
    """The work goes on without its stream: its bill comes with the retrieval, streamed from where it was left."""
    with sync_client(answering(events(QUEUED, RUNNING, DONE), events(RUNNING, DONE))) as client:
        stream = client.responses.create(model=MODEL, input="x", background=True, stream=True)
        next(iter(stream))
        stream.close()
        assert 0 == captured.golden_signals().sample.unpriced
        for _ in range(2):
            kinds = [each.type for each in client.responses.retrieve("resp_1", stream=True, starting_after=1)]
            assert ["response.in_progress", "response.completed"] == kinds
    assert [(150, 50)] == billed(captured)


def test_a_response_that_is_asked_for_while_it_streams_is_billed_once(captured: Captured) -> None:
    """Of a stream and a retrieval beside it, whichever hears the usage first has the bill."""
    with sync_client(answering(events(QUEUED, RUNNING, DONE), DONE)) as client:
        stream = iter(client.responses.create(model=MODEL, input="x", background=True, stream=True))
        next(stream)
        client.responses.retrieve("resp_1")
        for _ in stream:
            pass
    assert [(150, 50)] == billed(captured)
    assert (1, 0) == (captured.golden_signals().sample.priced, captured.golden_signals().sample.unpriced)


def test_a_retrieved_stream_that_is_forgotten_bills_nothing(captured: Captured) -> None:
    """A stream of which the usage was not read leaves no span, and the next one is billed."""
    with sync_client(answering(events(RUNNING, DONE))) as client:
        stream = client.responses.retrieve("resp_1", stream=True)
        next(iter(stream))
        del stream
        gc.collect()
        assert [] == captured.spans
        list(client.responses.retrieve("resp_1", stream=True))
    assert [(150, 50)] == billed(captured)


def test_a_failed_background_response_is_an_error(captured: Captured) -> None:
    """What failed, and tells a usage, is billed and counts as failed."""
    failed = response("failed", background=True, usage=USAGE, error={"code": "server_error", "message": "no"})
    with sync_client(answering(failed)) as client:
        client.responses.retrieve("resp_1")
    tags = only(captured)
    assert ("error", "server_error", float(COST)) == (tags["outcome"], tags["error.type"], tags["cost_usd"])


def test_what_was_counted_is_remembered_in_bounds(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ids are forgotten, and counted again if somebody asks; the latest are not."""
    monkeypatch.setattr(_bills, "MOST_BILLS", 3)

    def answer(request: Any) -> Any:
        return json_response(body_of(response(background=True, id=request.url.path.rpartition("/")[2])))

    with sync_client(answer) as client:
        for name in ("resp_1", "resp_2", "resp_3", "resp_4", "resp_4", "resp_3", "resp_2", "resp_1"):
            client.responses.retrieve(name)
    assert 5 == len(billed(captured))


def test_ids_are_those_of_one_instrumentation() -> None:
    """A test that uses an id again is a process of its own."""
    for _ in range(2):
        with capture() as captured, sync_client(answering(DONE)) as client:
            client.responses.retrieve("resp_1")
        assert 1 == len(billed(captured))


# --- batches, runs ------------------------------------------------------------------------------


def test_a_batch_costs_the_batch_price(captured: Captured) -> None:
    """A batch is billed at half the price, once, when it is seen to be complete; a list of batches bills none."""
    usage = {"input_tokens": 1_000_000, "output_tokens": 1_000_000, "total_tokens": 2_000_000}
    waiting = {**BATCH, "status": "in_progress", "usage": None}
    with sync_client(answering(waiting, {"object": "list", "data": [BATCH]}, {**BATCH, "usage": usage})) as client:
        client.batches.retrieve("batch_1")
        list(client.batches.list())
        assert [] == captured.spans
        for _ in range(3):
            client.batches.retrieve("batch_1")
    tags = only(captured)
    assert (1_000_000, 1_000_000) == (tags["input_tokens"], tags["output_tokens"])
    assert Decimal("0.375") == captured.golden_signals().sample.spent_usd


@pytest.mark.parametrize("usage", [None, {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}])
def test_a_batch_without_usage_bills_nothing(captured: Captured, usage: Any) -> None:
    """An old batch tells no usage, and an empty one has none."""
    with sync_client(answering({**BATCH, "usage": usage})) as client:
        client.batches.retrieve("batch_1")
    assert [] == captured.spans


def test_a_run_is_billed_once_and_not_its_steps(captured: Captured) -> None:
    """A run that waits for a tool, goes on, and is polled by two threads is one bill; so is one that only streams."""
    step = {"id": "step_1", "object": "thread.run.step", "status": "completed", "usage": CHAT_USAGE}
    states = (run("queued"), run("requires_action"), run("in_progress"), step, run())
    with sync_client(answering(*states)) as client:
        client.beta.threads.runs.create(thread_id="t", assistant_id="a")
        client.beta.threads.runs.retrieve("run_1", thread_id="t")
        client.beta.threads.runs.submit_tool_outputs("run_1", thread_id="t", tool_outputs=[])
        client.beta.threads.runs.steps.retrieve("step_1", thread_id="t", run_id="run_1")
        threads = [
            threading.Thread(target=client.beta.threads.runs.retrieve, args=("run_1",), kwargs={"thread_id": "t"})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(150, 50)] == billed(captured)
    assert (1, 0) == (captured.golden_signals().sample.priced, captured.golden_signals().sample.unpriced)


def test_a_run_that_streams_to_a_tool_and_on(captured: Captured) -> None:
    """The first stream ends where a tool is due and bills nothing; the second brings the bill of both."""
    first: list[Event] = [*RUN_EVENTS[:2], ("thread.run.requires_action", run("requires_action"))]
    with sync_client(answering(first, list(RUN_EVENTS))) as client:
        with client.beta.threads.runs.stream(thread_id="t", assistant_id="a") as stream:
            stream.until_done()
        with client.beta.threads.runs.submit_tool_outputs_stream(
            run_id="run_1", thread_id="t", tool_outputs=[]
        ) as stream:
            stream.until_done()
            assert "completed" == stream.current_run.status if stream.current_run else False
    assert [(150, 50)] == billed(captured)
    assert 0 == captured.golden_signals().sample.unpriced


@pytest.mark.parametrize(
    ("told", "outcome", "reasons"),
    [
        (run("failed", usage=CHAT_USAGE, last_error={"code": "rate_limit_exceeded", "message": "m"}), "error", "error"),
        (run("incomplete", usage=CHAT_USAGE, incomplete_details={"reason": "max_prompt_tokens"}), "success", "length"),
        (run("expired", usage=CHAT_USAGE), "error", "error"),
    ],
)
def test_how_a_run_ended(captured: Captured, told: dict[str, Any], outcome: str, reasons: str) -> None:
    """The status of a run is the outcome of its span."""
    with sync_client(answering(told)) as client:
        client.beta.threads.runs.retrieve("run_1", thread_id="t")
    tags = only(captured)
    assert (outcome, (reasons,)) == (tags["outcome"], tags["gen_ai.response.finish_reasons"])


def test_tools_of_an_assistant_make_its_cost_a_lower_bound(captured: Captured) -> None:
    """Whether a run searched files stands in its steps: where it may have, the cost is said to be partial."""
    with sync_client(answering(run(tools=[{"type": "file_search"}]))) as client:
        client.beta.threads.runs.retrieve("run_1", thread_id="t")
    assert (float(COST), "partial") == (only(captured)["cost_usd"], only(captured)["cost_source"])


# --- hosted tools -------------------------------------------------------------------------------

SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}}
OPENED = {"type": "web_search_call", "id": "ws_2", "status": "completed", "action": {"type": "open_page", "url": "u"}}
FAILED = {**SEARCH, "id": "ws_3", "status": "failed"}
FILES = {"type": "file_search_call", "id": "fs_1", "status": "completed", "queries": ["q"]}
CODE = {"type": "code_interpreter_call", "id": "ci_1", "status": "completed", "code": "1", "container_id": "c"}
DRAWN = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "AA=="}
LOCAL = {"type": "shell_call", "id": "sh_1", "call_id": "c", "status": "completed", "environment": {"type": "local"}}
REASONED = {**USAGE, "output_tokens_details": {"reasoning_tokens": 20}}
DRAWING = {
    "image_gen": {
        "input_tokens": 10, "output_tokens": 100, "total_tokens": 110,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    },
    "web_search": {"num_requests": 0},
}  # fmt: skip


def told_by(output: Iterable[dict[str, Any]], **members: Any) -> dict[str, Any]:
    """Return a response with these items in its output."""
    return response(output=list(output), **members)


@pytest.mark.parametrize(
    ("answer", "beside", "source"),
    [
        pytest.param(told_by([SEARCH, SEARCH, OPENED, FAILED]), "0.02", "genai-prices", id="web"),
        pytest.param(told_by([FILES]), "0.0025", "genai-prices", id="files"),
        pytest.param(told_by([SEARCH, FILES, CODE]), "0.0125", "partial", id="code"),
        pytest.param(told_by([DRAWN]), "0", "partial", id="picture"),
        pytest.param(told_by([LOCAL]), "0", "genai-prices", id="own shell"),
        # The provider's own count comes first: it knows which searches were free.
        pytest.param(
            told_by([SEARCH, SEARCH], tool_usage={"web_search": {"num_requests": 1}}), "0.01", "genai-prices", id="told"
        ),
        pytest.param(
            told_by([SEARCH], tool_usage={"web_search": {"num_requests": -3}}), "0.01", "genai-prices", id="told badly"
        ),
        # 10 tokens of text at $5, 100 drawn at $32 the million.
        pytest.param(
            told_by([DRAWN], tool_usage=DRAWING, tools=[{"type": "image_generation", "model": "gpt-image-1.5"}]),
            "0.00325", "genai-prices", id="picture told",
        ),
        pytest.param(told_by([DRAWN], tool_usage=DRAWING), "0", "partial", id="picture by whom"),
        # The older tool costs more where the model does not reason, and no table says so.
        pytest.param(told_by([SEARCH], tools=[{"type": "web_search_preview"}]), "0", "partial", id="preview"),
        pytest.param(
            told_by([SEARCH], tools=[{"type": "web_search_preview"}], usage=REASONED), "0.01", "genai-prices",
            id="preview, reasoned",
        ),
    ],
)  # fmt: skip
def test_hosted_tools_cost_extra(captured: Captured, answer: dict[str, Any], beside: str, source: str) -> None:
    """What has a price is added to the cost; what has none makes the cost a lower bound, and says so everywhere."""
    with sync_client(answering(answer)) as client:

        @tp.observed_agent(name="searcher")
        def search() -> None:
            client.responses.create(model=MODEL, input="x")

        search()
    usd = Decimal(COST) + Decimal(beside)
    tags = captured.tags(f"chat {MODEL}")
    assert (float(usd), source) == (tags["cost_usd"], tags["cost_source"])
    run_tags = captured.tags("searcher.execute")
    assert (float(usd), "partial" if source == "partial" else None) == (
        run_tags["cost_usd"],
        run_tags.get("cost_source"),
    )
    sample = captured.golden_signals().sample
    assert (usd, int(source != "partial"), int(source == "partial")) == (
        sample.spent_usd,
        sample.priced,
        sample.unpriced,
    )


def test_what_was_billed_beside_the_tokens_is_an_event(captured: Captured) -> None:
    """How often a tool was at work, and what that cost, stands on the span."""
    with sync_client(answering(told_by([SEARCH, SEARCH, FILES, CODE]))) as client:
        client.responses.create(model=MODEL, input="x")
    (event,) = captured.spans[0].events
    assert "openai.other_usage" == event.name
    assert {"web_searches": 2, "storage_searches": 1, "code_calls": 1, "cost_usd": 0.0225} == dict(
        event.attributes or {}
    )


def test_a_model_that_searches_has_a_fee_for_each_call(captured: Captured) -> None:
    """Chat completions of a search model do not tell its fee: their cost is a lower bound."""
    with sync_client(answering({**COMPLETION, "model": "gpt-4o-mini-search-preview-2025-03-11"})) as client:
        client.chat.completions.create(model="gpt-4o-mini-search-preview", messages=MESSAGES)  # type: ignore[arg-type]
    assert (float(COST), "partial") == (only(captured)["cost_usd"], only(captured)["cost_source"])


def test_the_users_price_knows_no_fees(server: EmbeddedServer) -> None:
    """Where the user's own price holds for the tokens, nobody has said what a search costs."""
    with (
        capture(pricing={MODEL: {"input": 1, "output": 1}}) as captured,
        sync_client(answering(told_by([SEARCH]))) as client,
    ):
        client.responses.create(model=MODEL, input="x")
    assert (0.0002, "partial") == (only(captured)["cost_usd"], only(captured)["cost_source"])


def test_drawings_that_are_text_are_billed_by_their_model(captured: Captured) -> None:
    """What another model wrote for a picture is added: 100 and 10 tokens of gpt-5."""
    svg = {"model": "gpt-5", "input_tokens": 100, "output_tokens": 10, "reasoning_tokens": 5, "total_tokens": 110}
    body = {
        "created": 1, "data": [], "svg_usage": svg,
        "usage": {"input_tokens": 10, "output_tokens": 100, "total_tokens": 110,
                  "input_tokens_details": {"text_tokens": 10, "image_tokens": 0}},
    }  # fmt: skip
    with sync_client(answering(body)) as client:
        client.images.generate(model="gpt-image-1.5", prompt="x")
    assert (10, 100, 0.00325 + 0.000225) == tuple(
        only(captured)[name] for name in ("input_tokens", "output_tokens", "cost_usd")
    )


# --- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "chat/completions",
        "/chat/completions?api-version=2024-10-21",
        "/deployments/mine/chat/completions",
        "https://gateway.example/openai/v1/chat/completions",
        "https://gateway.example/team/llm/v2/chat/completions/",
    ],
)
def test_a_path_of_ones_own(captured: Captured, path: str) -> None:
    """Calls by path are seen below whatever a gateway or a deployment puts before the endpoint."""
    with sync_client(answering(COMPLETION)) as client:
        client.post(path, cast_to=object, body={"model": MODEL, "messages": MESSAGES})
        client.post(
            path,
            cast_to=httpx.Response,
            body={"messages": MESSAGES},
            options={"extra_json": {"model": MODEL}},
        )
    assert [(150, 50), (150, 50)] == billed(captured)
    assert [MODEL, MODEL] == [dict(span.attributes or {})["model"] for span in captured.spans]


@pytest.mark.parametrize(
    "path",
    ["/chat/completions/chatcmpl-1", "/responses/input_tokens", "/conversations/c/items", "/files", "/my/embedding"],
)
def test_other_paths_bill_nothing(captured: Captured, path: str) -> None:
    """What only looks like a billed endpoint is none."""
    with sync_client(answering(COMPLETION)) as client:
        client.post(path, cast_to=object, body={"model": MODEL})
    assert [] == captured.spans


def test_azure_retrieves_and_transcribes(captured: Captured) -> None:
    """Deployments and background responses of Azure are seen, at the prices of the model that answered."""
    answer = answering({"text": "hello", "usage": {"type": "duration", "seconds": 60}}, DONE)
    with openai.AzureOpenAI(
        api_key="k",
        api_version="2025-04-01-preview",
        azure_endpoint="https://mine.openai.azure.com",
        http_client=httpx.Client(transport=httpx.MockTransport(answer)),
    ) as client:
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"))
        client.responses.retrieve("resp_1")
    heard, told = (dict(span.attributes or {}) for span in captured.spans)
    assert ("azure.ai.openai", "transcription") == (heard["gen_ai.provider.name"], heard["gen_ai.operation.name"])
    assert (150, 50, "azure.ai.openai") == (
        told["input_tokens"],
        told["output_tokens"],
        told["gen_ai.provider.name"],
    )


# --- sound --------------------------------------------------------------------------------------


def test_a_transcript_that_looks_like_json(captured: Captured) -> None:
    """A plain result that begins like JSON is the caller's text, and no error of ours."""
    plain = httpx.Response(200, content=b"{curly} he said", headers={"content-type": "text/plain"})
    with sync_client(lambda _: plain) as client:
        result = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"), response_format="text")
    assert "{curly} he said" == str(result)
    assert "unknown" == only(captured)["cost_source"]


def test_speech_that_comes_as_events_tells_its_tokens(captured: Captured) -> None:
    """The last event has the usage: it counts, and the characters of the request do not."""
    usage = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
    last: list[Event] = [
        (None, {"type": "speech.audio.delta", "audio": "AA=="}),
        (None, {"type": "speech.audio.done", "usage": usage}),
    ]
    ask: Any = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "hello", "extra_body": {"stream_format": "sse"}}
    with sync_client(answering(last)) as client:
        client.audio.speech.create(**ask)
        with client.audio.speech.with_streaming_response.create(**ask) as streamed:
            streamed.read()
    assert [(14, 101), (14, 101)] == billed(captured)
    # 14 at $0.60 and 101 at $12 the million, twice.
    assert Decimal("0.0024408") == captured.golden_signals().sample.spent_usd


async def test_a_sound_that_is_streamed_to_a_file(captured: Captured, tmp_path: Any) -> None:
    """Binary results stay what they are, plain and streamed to a file."""
    answer = httpx.Response(200, content=b"MP3", headers={"content-type": "audio/mpeg"})
    async with async_client(lambda _: answer) as client:
        spoken = await client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
    with sync_client(lambda _: httpx.Response(200, content=b"MP3", headers=answer.headers)) as plain:
        target = tmp_path / "speech.mp3"
        with plain.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="hello") as streamed:
            streamed.stream_to_file(target)
    assert (b"MP3", b"MP3") == (spoken.content, target.read_bytes())
    assert [0.000075, 0.000075] == [dict(span.attributes or {})["cost_usd"] for span in captured.spans]


def test_a_refused_call_costs_nothing(captured: Captured) -> None:
    """What was not spoken is not billed by its characters."""
    with sync_client(lambda _: json_response(b'{"error": {"message": "no"}}', 400)) as client:
        with pytest.raises(openai.BadRequestError):
            client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
        with pytest.raises(openai.BadRequestError):
            client.responses.retrieve("resp_1")
    tags = only(captured)
    assert ("error", None, None) == (tags["outcome"], tags.get("cost_usd"), tags.get("cost_source"))
    assert (0, 0) == (captured.golden_signals().sample.unpriced, captured.golden_signals().sample.priced)


@pytest.mark.parametrize("usage", [{"seconds": -1}, {"seconds": float("inf")}, {}])
def test_a_length_that_is_none_is_unknown(captured: Captured, usage: dict[str, Any]) -> None:
    """Only a number of seconds is a length."""
    body = json.dumps({"text": "hello", "usage": {"type": "duration", **usage}}).encode()
    with sync_client(lambda _: json_response(body)) as client:
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"))
    assert ("unknown", None) == (only(captured)["cost_source"], only(captured).get("cost_usd"))
