"""A real call for each billable method of the openai client: what to send, what comes back, what it must cost."""

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

MODEL = "gpt-4o-mini"
MESSAGES = [{"role": "user", "content": "hello"}]
AUDIO = ("speech.wav", b"RIFF", "audio/wav")
VIDEO_FILE = ("a.mp4", b"\x00", "video/mp4")
IMAGE = ("a.png", b"\x89PNG", "image/png")

Event = tuple[str | None, dict[str, Any]]


class Scenario(NamedTuple):
    """One call and what must be seen of it.

    :param method: dotted name.
    :param answers: bodies of the responses, one for each request; the last one again and again.
    :param events: what is streamed, where the method takes ``stream=True``, or is a stream by itself.
    :param tokens: input and output, as the body says; None where it says nothing.
    :param cost: USD; None where it is unknown, or free.
    :param source: ``cost_source`` of the span, None where it has none.
    :param is_stream: True where the method itself is a stream, or a manager of one.
    """

    method: str
    arguments: dict[str, Any]
    answers: Sequence[dict[str, Any] | bytes]
    tokens: tuple[int | None, int | None] | None
    cost: str | None
    source: str | None = "genai-prices"
    model: str | None = MODEL
    operation: str = "chat"
    events: Sequence[Event] = ()
    is_stream: bool = False
    #: Further spans, which tell no bill: the call that started what is told later.
    others: int = 0

    @property
    def usd(self) -> Decimal | None:
        """Exact cost."""
        return None if self.cost is None else Decimal(self.cost)


# --- what the API answers -----------------------------------------------------------------------

#: 150 and 50 tokens of gpt-4o-mini.
COST = "0.0000525"
CHAT_USAGE = {"prompt_tokens": 150, "completion_tokens": 50, "total_tokens": 200}
USAGE = {
    "input_tokens": 150, "output_tokens": 50, "total_tokens": 200,
    "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
}  # fmt: skip

COMPLETION = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "usage": CHAT_USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
}  # fmt: skip
_CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
CHUNKS: Sequence[Event] = (
    (None, {**_CHUNK, "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}),
    (None, {**_CHUNK, "choices": [], "usage": CHAT_USAGE}),
)
TEXT = {
    "id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "usage": CHAT_USAGE,
    "choices": [{"index": 0, "finish_reason": "stop", "text": "hi"}],
}  # fmt: skip
EMBEDDING = {
    "object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 8, "total_tokens": 8},
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
}  # fmt: skip
DECISION = {
    "model": "gpt-6-luna", "answers": [{"type": "predicate", "name": "q", "probability": 0.5}],
    "usage": {
        "input_tokens": 1000, "output_tokens": 7, "total_tokens": 1007,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}  # fmt: skip


def response(status: str = "completed", **members: Any) -> dict[str, Any]:
    """Return a response of the Responses API."""
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "status": status, "background": False, "model": MODEL,
        "output": [], "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "temperature": 1.0, "top_p": 1.0,
        "usage": USAGE if status == "completed" else None, **members,
    }  # fmt: skip


def _events_of(last: dict[str, Any]) -> Sequence[Event]:
    first = {**last, "status": "in_progress", "usage": None}
    return (
        (None, {"type": "response.created", "response": first, "sequence_number": 0}),
        (None, {"type": "response.in_progress", "response": first, "sequence_number": 1}),
        (None, {"type": "response.completed", "response": last, "sequence_number": 2}),
    )


BACKGROUND = response(background=True)
COMPACTION = {"id": "resp_2", "object": "response.compaction", "created_at": 1, "output": [], "usage": USAGE}


def run(status: str = "completed", **members: Any) -> dict[str, Any]:
    """Return an assistant's run."""
    return {
        "id": "run_1", "object": "thread.run", "created_at": 1, "thread_id": "thread_1", "assistant_id": "asst_1",
        "status": status, "model": MODEL, "instructions": "", "tools": [], "metadata": {}, "parallel_tool_calls": True,
        "usage": CHAT_USAGE if status == "completed" else None, **members,
    }  # fmt: skip


RUN_EVENTS: Sequence[Event] = (
    ("thread.run.created", run("queued")),
    ("thread.run.in_progress", run("in_progress")),
    ("thread.run.step.completed", {"id": "step_1", "object": "thread.run.step", "usage": CHAT_USAGE, "status": "x"}),
    ("thread.run.completed", run()),
)
BATCH = {
    "id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "f", "created_at": 1,
    "completion_window": "24h", "status": "completed", "model": MODEL, "usage": USAGE,
}  # fmt: skip
EVALUATION = {
    "id": "evalrun_1", "object": "eval.run", "eval_id": "eval_1", "created_at": 1, "status": "completed", "model": "x",
    "name": "n", "report_url": "u", "data_source": {"type": "jsonl", "source": {"type": "file_id", "id": "f"}},
    "per_testing_criteria_results": [], "result_counts": {"errored": 0, "failed": 0, "passed": 1, "total": 1},
    "per_model_usage": [{
        "model_name": MODEL, "invocation_count": 2, "prompt_tokens": 150, "completion_tokens": 50, "cached_tokens": 0,
        "total_tokens": 200,
    }],
}  # fmt: skip
TURN = {
    "id": "turn_1", "object": "agent.session.turn", "agent_id": "agent_1", "session_id": "sess_1", "created_at": 1,
    "status": "completed", "usage": USAGE,
}  # fmt: skip
TURN_EVENTS: Sequence[Event] = (
    (None, {"type": "agent.session.turn.created", "event_id": "e0", "session_id": "sess_1", "turn_id": "turn_1",
            "turn": {**TURN, "status": "in_progress", "usage": None}}),
    (None, {"type": "agent.session.turn.completed", "event_id": "e1", "session_id": "sess_1", "turn_id": "turn_1",
            "turn": {**TURN, "usage": None}, "usage": USAGE}),
)  # fmt: skip
IMAGES = {
    "created": 1, "data": [{"b64_json": "AA=="}],
    "usage": {
        "input_tokens": 50, "output_tokens": 500, "total_tokens": 550,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 500},
    },
}  # fmt: skip
#: 10 tokens of text at $5, 40 of pictures at $8, 500 drawn at $32 the million.
IMAGE_COST = "0.01637"


def _drawn(kind: str) -> Sequence[Event]:
    # The events do not say that what was made is a picture.
    usage = {name: count for name, count in IMAGES["usage"].items() if name != "output_tokens_details"}  # type: ignore[attr-defined]
    return (
        (None, {"type": f"{kind}.partial_image", "b64_json": "AA==", "partial_image_index": 0}),
        (None, {"type": f"{kind}.completed", "b64_json": "AA==", "usage": usage}),
    )


SPOKEN = {
    "type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
    "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
}  # fmt: skip
#: 4 tokens of text at $2.50, 10 of sound at $6, 45 of text at $10 the million.
SPOKEN_COST = "0.00052"
TRANSCRIPT_EVENTS: Sequence[Event] = (
    (None, {"type": "transcript.text.delta", "delta": "he"}),
    (None, {"type": "transcript.text.done", "text": "hello", "usage": SPOKEN}),
)
VIDEO = {
    "id": "video_1", "object": "video", "created_at": 1, "model": "sora-2", "progress": 0, "seconds": "4",
    "size": "720x1280", "status": "queued",
}  # fmt: skip
TRAINING = {
    "id": "ftjob-1", "object": "fine_tuning.job", "created_at": 1, "model": MODEL, "organization_id": "o",
    "result_files": [], "status": "queued", "training_file": "f", "hyperparameters": {}, "seed": 1,
}  # fmt: skip
GRADE = {"reward": 1.0, "sub_rewards": {}, "metadata": {}, "model_grader_token_usage_per_model": {}}


# --- the calls ----------------------------------------------------------------------------------

_ASK = {"model": MODEL, "input": "x"}
_CHAT = {"model": MODEL, "messages": MESSAGES}
_THREAD = {"thread_id": "thread_1", "assistant_id": "asst_1"}
_RUN = {"run_id": "run_1", "thread_id": "thread_1"}
_AGENT = "invoke_agent"
_OUTPUTS = {**_RUN, "tool_outputs": [{"tool_call_id": "c", "output": "x"}]}
_BY_ID = {"response_id": "resp_1"}
_TOLD: dict[str, Any] = {"answers": [run()], "tokens": (150, 50), "cost": COST, "operation": _AGENT}
_UNKNOWN: dict[str, Any] = {"tokens": None, "cost": None, "source": "unknown"}
_DRAW: dict[str, Any] = {
    "answers": [IMAGES], "tokens": (50, 500), "cost": IMAGE_COST, "model": "gpt-image-1.5",
    "operation": "generate_content",
}  # fmt: skip
_VIDEO: dict[str, Any] = {"answers": [VIDEO], **_UNKNOWN, "model": "sora-2", "operation": "generate_content"}
_POLLED = {"tokens": (150, 50), "cost": COST, "operation": _AGENT, "others": 1}
_TURN: dict[str, Any] = {
    "tokens": (150, 50), "cost": None, "source": "unknown", "model": None, "operation": _AGENT
}  # fmt: skip


def _chat(prefix: str) -> list[Scenario]:
    return [
        Scenario(f"{prefix}chat.completions.create", _CHAT, [COMPLETION], (150, 50), COST, events=CHUNKS),
        Scenario(f"{prefix}chat.completions.parse", _CHAT, [COMPLETION], (150, 50), COST),
        Scenario(f"{prefix}chat.completions.stream", _CHAT, [], (150, 50), COST, events=CHUNKS, is_stream=True),
    ]


def _responses(prefix: str) -> list[Scenario]:
    told = response("queued", background=True), BACKGROUND
    return [
        Scenario(
            f"{prefix}responses.create", _ASK, [response()], (150, 50), COST, events=_events_of(response())
        ),
        Scenario(f"{prefix}responses.compact", _ASK, [COMPACTION], (150, 50), COST),
        Scenario(
            f"{prefix}responses.retrieve", _BY_ID, [BACKGROUND], (150, 50), COST, events=_events_of(BACKGROUND)
        ),
        Scenario(f"{prefix}responses.cancel", _BY_ID, [response("cancelled", background=True, usage=USAGE)],
                 (150, 50), COST),
        Scenario(f"{prefix}responses.create", {**_ASK, "background": True}, told[:1], None, None, source=None),
    ]  # fmt: skip


SCENARIOS: tuple[Scenario, ...] = (
    *_chat(""),
    *_chat("beta."),
    Scenario("completions.create", {"model": MODEL, "prompt": "x"}, [TEXT], (150, 50), COST,
             operation="text_completion",
             events=[(None, {**TEXT, "choices": TEXT["choices"]})]),
    *_responses(""),
    *_responses("beta."),
    Scenario("responses.parse", _ASK, [response()], (150, 50), COST),
    Scenario("responses.stream", _ASK, [], (150, 50), COST, events=_events_of(response()), is_stream=True),
    Scenario("embeddings.create", {"model": "text-embedding-3-small", "input": "x"}, [EMBEDDING], (8, None),
             "0.00000016", model="text-embedding-3-small", operation="embeddings"),
    # The table's own list for decisions has no price for their output.
    Scenario("decisions.create", {"model": "gpt-6-luna", "input": "x", "questions": []}, [DECISION], (1000, 7),
             "0.0001", model="gpt-6-luna", operation="decision"),
    Scenario("moderations.create", {"model": "omni-moderation-latest", "input": "x"},
             [{"id": "modr-1", "model": "omni-moderation-latest", "results": []}], None, None, source=None,
             model="omni-moderation-latest", operation="moderation"),
    # --- pictures
    Scenario("images.generate", {"model": "gpt-image-1.5", "prompt": "x"}, **_DRAW, events=_drawn("image_generation")),
    Scenario("images.edit", {"model": "gpt-image-1.5", "prompt": "x", "image": IMAGE}, **_DRAW,
             events=_drawn("image_edit")),
    Scenario("images.create_variation", {"model": "dall-e-2", "image": IMAGE}, [{"created": 1, "data": [{"url": "u"}]}],
             **_UNKNOWN, model="dall-e-2", operation="generate_content"),
    # --- sound
    Scenario("audio.transcriptions.create", {"model": "gpt-4o-transcribe", "file": AUDIO},
             [{"text": "hello", "usage": SPOKEN}], (14, 45), SPOKEN_COST, model="gpt-4o-transcribe",
             operation="transcription", events=TRANSCRIPT_EVENTS),
    Scenario("audio.transcriptions.create", {"model": "whisper-1", "file": AUDIO, "response_format": "verbose_json"},
             [{"text": "hello", "language": "en", "duration": 8.47, "usage": {"type": "duration", "seconds": 9}}],
             None, "0.0009", model="whisper-1", operation="transcription"),
    Scenario("audio.transcriptions.create", {"model": "whisper-1", "file": AUDIO, "response_format": "srt"},
             [b"1\n00:00 --> 00:01\nhello\n"], **_UNKNOWN, model="whisper-1", operation="transcription"),
    Scenario("audio.translations.create", {"model": "whisper-1", "file": AUDIO}, [{"text": "hello"}], **_UNKNOWN,
             model="whisper-1", operation="translation"),
    Scenario("audio.translations.create", {"model": "whisper-1", "file": AUDIO},
             [{"text": "hello", "usage": {"type": "duration", "seconds": 90}}], None, "0.009", model="whisper-1",
             operation="translation"),
    Scenario("audio.speech.create", {"model": "tts-1", "voice": "alloy", "input": "äöü" * 100}, [b"\xffMP3"],
             None, "0.0045", model="tts-1", operation="speech"),
    Scenario("audio.speech.create", {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "x"}, [b"\xffMP3"],
             **_UNKNOWN, model="gpt-4o-mini-tts", operation="speech"),
    # --- what is told later
    Scenario("batches.retrieve", {"batch_id": "batch_1"}, [BATCH], (150, 50), "0.00002625", operation="batch"),
    Scenario("batches.cancel", {"batch_id": "batch_1"}, [{**BATCH, "status": "cancelled"}], (150, 50), "0.00002625",
             operation="batch"),
    Scenario("evals.runs.retrieve", {"run_id": "evalrun_1", "eval_id": "eval_1"}, [EVALUATION], (150, 50), COST,
             operation="evaluation"),
    Scenario("evals.runs.cancel", {"run_id": "evalrun_1", "eval_id": "eval_1"},
             [{**EVALUATION, "status": "canceled"}], (150, 50), COST, operation="evaluation"),
    # --- assistants
    Scenario("beta.threads.create_and_run", {"assistant_id": "asst_1"}, [run()], (150, 50), COST, operation=_AGENT,
             events=RUN_EVENTS),
    Scenario("beta.threads.create_and_run_poll", {"assistant_id": "asst_1"}, [run("queued"), run()], **_POLLED),
    Scenario("beta.threads.create_and_run_stream", {"assistant_id": "asst_1"}, [], (150, 50), COST, operation=_AGENT,
             events=RUN_EVENTS, is_stream=True),
    Scenario("beta.threads.runs.create", _THREAD, [run()], (150, 50), COST, operation=_AGENT, events=RUN_EVENTS),
    Scenario("beta.threads.runs.create", _THREAD, [run("queued")], None, None, source=None, operation=_AGENT),
    Scenario("beta.threads.runs.create_and_poll", _THREAD, [run("queued"), run("in_progress"), run()], **_POLLED),
    Scenario("beta.threads.runs.create_and_stream", _THREAD, [], (150, 50), COST, operation=_AGENT, events=RUN_EVENTS,
             is_stream=True),
    Scenario("beta.threads.runs.stream", _THREAD, [], (150, 50), COST, operation=_AGENT, events=RUN_EVENTS,
             is_stream=True),
    Scenario("beta.threads.runs.retrieve", _RUN, **_TOLD),
    Scenario("beta.threads.runs.poll", _RUN, [run("in_progress"), run()], (150, 50), COST, operation=_AGENT),
    Scenario("beta.threads.runs.update", {**_RUN, "metadata": {}}, **_TOLD),
    Scenario("beta.threads.runs.cancel", _RUN, [run("cancelled", usage=CHAT_USAGE)], (150, 50), COST,
             operation=_AGENT),
    Scenario("beta.threads.runs.submit_tool_outputs", _OUTPUTS, **_TOLD, events=RUN_EVENTS),
    Scenario("beta.threads.runs.submit_tool_outputs_and_poll", _OUTPUTS, [run("in_progress"), run()], (150, 50), COST,
             operation=_AGENT),
    Scenario("beta.threads.runs.submit_tool_outputs_stream", _OUTPUTS, [], (150, 50), COST, operation=_AGENT,
             events=RUN_EVENTS, is_stream=True),
    # --- hosted agents, whose turns do not tell their model
    Scenario("beta.agents.sessions.turns.retrieve", {"turn_id": "turn_1", "session_id": "sess_1"}, [TURN], **_TURN),
    Scenario("beta.agents.sessions.subagents.turns.retrieve",
             {"turn_id": "turn_1", "session_id": "sess_1", "subagent_id": "sub_1"}, [TURN], **_TURN),
    Scenario("beta.agents.sessions.events.stream", {"session_id": "sess_1"}, [], **_TURN, events=TURN_EVENTS,
             is_stream=True),
    Scenario("beta.agents.sessions.create", {"environment": {"type": "hosted"}, "agent_id": "a", "input": "x"}, [],
             **_TURN, events=TURN_EVENTS),
    # --- billed by what nobody tells
    Scenario("videos.create", {"model": "sora-2", "prompt": "x"}, **_VIDEO),
    Scenario("videos.create_and_poll", {"model": "sora-2", "prompt": "x"},
             [VIDEO, {**VIDEO, "status": "completed"}], **_UNKNOWN, model="sora-2", operation="generate_content"),
    Scenario("videos.edit", {"prompt": "x", "video": VIDEO_FILE}, **_VIDEO),
    Scenario("videos.extend", {"prompt": "x", "seconds": "4", "video": VIDEO_FILE}, **_VIDEO),
    Scenario("videos.remix", {"video_id": "video_1", "prompt": "x"}, **_VIDEO),
    Scenario("containers.create", {"name": "c"}, [{"id": "cntr_1", "object": "container", "created_at": 1, "name": "c",
             "status": "running"}], **_UNKNOWN, model=None, operation="create_container"),
    Scenario("fine_tuning.jobs.create", {"model": MODEL, "training_file": "f"}, [TRAINING], **_UNKNOWN,
             operation="fine_tuning"),
    Scenario("fine_tuning.alpha.graders.run", {"grader": {"type": "string_check"}, "model_sample": "x"}, [GRADE],
             **_UNKNOWN, model=None, operation="grading"),
)  # fmt: skip


def body_of(answer: dict[str, Any] | bytes) -> bytes:
    """Return a body as it is sent."""
    return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def stream_of(events: Sequence[Event]) -> list[bytes]:
    """Return events as they are sent."""
    return [
        *((f"event: {name}\n" if name else "").encode() + b"data: " + body_of(data) + b"\n\n" for name, data in events),
        b"data: [DONE]\n\n",
    ]
