"""Every billable call of the client beside chat: counted once, with the provider's tokens, or openly unknown."""

import json
import threading
import time
from decimal import Decimal
from typing import Any

import openai
import pytest
from mock_openai import async_client, httpx, json_response, sync_client

from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.testing import Captured

pytestmark = pytest.mark.openai

AUDIO = ("speech.wav", b"RIFF", "audio/wav")
IMAGE = ("a.png", b"\x89PNG", "image/png")


def fresh(prefix: str) -> str:
    """Return an id that no other test has used: what was billed is remembered by id."""
    return f"{prefix}_{time.time_ns()}"


def only(captured: Captured) -> dict[str, Any]:
    """Return the tags of the only span."""
    (span,) = captured.spans
    return dict(span.attributes or {})


# --- in the background --------------------------------------------------------------------------


def test_a_background_response_is_billed_once(
    captured: Captured, server: EmbeddedServer, client: openai.OpenAI
) -> None:
    """However often it is retrieved, a background response is one bill; its creation is none, and not unknown."""
    queued = client.responses.create(model="gpt-4o-mini", input="Go", background=True)
    assert 0 == captured.golden_signals().sample.unpriced
    threads = [threading.Thread(target=client.responses.retrieve, args=(queued.id,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = client.responses.retrieve(queued.id)
    assert done.usage is not None
    billed = [span for span in captured.spans if "input_tokens" in (span.attributes or {})]
    assert [done.usage.input_tokens] == [dict(span.attributes or {})["input_tokens"] for span in billed]
    assert 1 == captured.golden_signals().sample.priced


async def test_a_background_response_is_billed_once_async(captured: Captured, aclient: openai.AsyncOpenAI) -> None:
    """The async client does the same, also through raw responses."""
    queued = await aclient.responses.create(model="gpt-4o-mini", input="Go", background=True)
    raw = await aclient.responses.with_raw_response.retrieve(queued.id)
    assert "completed" == raw.parse().status
    await aclient.responses.retrieve(queued.id)
    assert 1 == captured.golden_signals().sample.priced


def test_a_foreground_response_is_not_billed_again(captured: Captured, client: openai.OpenAI) -> None:
    """A response that was counted when it was made is not counted when it is looked up."""
    made = client.responses.create(model="gpt-4o-mini", input="Go")
    client.responses.retrieve(made.id)
    assert 1 == len(captured.spans)
    assert 1 == captured.golden_signals().sample.priced


def test_a_batch_costs_the_batch_price(captured: Captured) -> None:
    """A batch is billed at half the price, once, when it is seen to be complete."""
    name, status = fresh("batch"), "in_progress"
    usage = {"input_tokens": 1_000_000, "output_tokens": 1_000_000, "total_tokens": 2_000_000}

    def answer(_request: Any) -> Any:
        batch = {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "f", "created_at": 1,
            "completion_window": "24h", "status": status, "model": "gpt-4o-mini",
            "usage": usage if status == "completed" else None,
        }  # fmt: skip
        return json_response(json.dumps(batch).encode())

    with sync_client(answer) as client:
        client.batches.retrieve(name)
        assert [] == captured.spans
        status = "completed"
        for _ in range(3):
            client.batches.retrieve(name)
    tags = only(captured)
    assert (1_000_000, 1_000_000) == (tags["input_tokens"], tags["output_tokens"])
    assert Decimal("0.375") == captured.golden_signals().sample.spent_usd


# --- audio, images, moderation ------------------------------------------------------------------


def test_transcription_by_tokens(captured: Captured) -> None:
    """A transcription that tells tokens is counted to the token."""
    usage = {
        "type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
        "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    }  # fmt: skip
    with sync_client(lambda _: json_response(json.dumps({"text": "hello", "usage": usage}).encode())) as client:
        result = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=AUDIO)
    tags = only(captured)
    assert "hello" == result.text
    assert ("gpt-4o-transcribe", 14, 45) == (tags["model"], tags["input_tokens"], tags["output_tokens"])


def test_transcription_by_seconds_is_unknown(captured: Captured) -> None:
    """Usage by the second is no usage in tokens: the cost is unknown, and said to be."""
    body = json.dumps({"text": "hello", "usage": {"type": "duration", "seconds": 9}}).encode()
    with sync_client(lambda _: json_response(body)) as client:
        client.audio.transcriptions.create(model="whisper-1", file=AUDIO)
    assert "unknown" == only(captured)["cost_source"]
    assert 1 == captured.golden_signals().sample.unpriced


def test_a_transcription_may_be_plain_text(captured: Captured) -> None:
    """Where the result is a ``str`` it stays one, and the cost is unknown."""
    plain = httpx.Response(200, content=b"hello", headers={"content-type": "text/plain"})
    with sync_client(lambda _: plain) as client:
        result = client.audio.transcriptions.create(model="whisper-1", file=AUDIO, response_format="text")
    assert "hello" == str(result).strip()
    assert "unknown" == only(captured)["cost_source"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_speech_and_translation(captured: Captured) -> None:
    """Speech is binary and stays it; a translation has no usage: both are one span of unknown cost."""
    sound = httpx.Response(200, content=b"MP3", headers={"content-type": "audio/mpeg"})
    async with async_client(lambda _: sound) as client:
        spoken = await client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
    async with async_client(lambda _: json_response(b'{"text": "hello"}')) as client:
        await client.audio.translations.create(model="whisper-1", file=AUDIO)
    assert b"MP3" == spoken.content
    assert ["unknown", "unknown"] == [dict(span.attributes or {})["cost_source"] for span in captured.spans]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_image_variations(captured: Captured) -> None:
    """Variations are seen; without usage their cost is unknown."""
    with sync_client(lambda _: json_response(b'{"created": 1, "data": [{"url": "u"}]}')) as client:
        if not hasattr(client.images, "create_variation"):
            pytest.skip("this client has no variations any more")
        client.images.create_variation(image=IMAGE, model="dall-e-2")
    assert "unknown" == only(captured)["cost_source"]


def test_moderation_is_free(captured: Captured) -> None:
    """A moderation is a span without a cost, and not one whose price is unknown."""
    body = json.dumps({"id": fresh("modr"), "model": "omni-moderation-latest", "results": []}).encode()
    with sync_client(lambda _: json_response(body)) as client:
        client.moderations.create(model="omni-moderation-latest", input="x")
    assert "cost_source" not in only(captured)
    assert (0, 0) == (captured.golden_signals().sample.unpriced, captured.golden_signals().sample.priced)


def test_what_bills_nothing_is_no_span(captured: Captured) -> None:
    """Listing models or files makes no span."""
    with sync_client(lambda _: json_response(b'{"object": "list", "data": []}')) as client:
        list(client.models.list())
        list(client.files.list())
    assert [] == captured.spans
