"""What each public method of the openai client has to do with money: one row for every method there is."""

import inspect
from collections.abc import Iterator
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

import openai


class Bill(Enum):
    """Where a method's bill is seen."""

    #: On the span of the call itself.
    AT_THE_CALL = "billed"
    #: On a span that is made when the result of something started earlier is first told.
    WHEN_TOLD = "billed when told"
    NEVER = "not billed"
    #: On the spans of the responses that go over the WebSocket which it opens, where these are observed.
    ON_THE_SOCKET = "billed on the socket"
    #: In somebody's browser, or on a WebSocket that tells no bill: not in a response to this method.
    ELSEWHERE = "billed elsewhere"


class Row(NamedTuple):
    """What a method has to do with money, and why."""

    bill: Bill
    why: str


_STORED = "looks up, lists, changes or deletes what is stored"
_SETTINGS = "settings and the account"
_TABLE: tuple[tuple[Bill, str, str], ...] = (
    (
        Bill.AT_THE_CALL,
        "a model answers, and the response tells the tokens",
        """
        chat.completions.{create,parse,stream} beta.chat.completions.{create,parse,stream} completions.create
        responses.{create,parse,stream,compact} beta.responses.{create,compact} embeddings.create decisions.create
        images.{generate,edit,create_variation} audio.transcriptions.create audio.translations.create
        """,
    ),
    (Bill.AT_THE_CALL, "billed by the character, which the request tells", "audio.speech.create"),
    (Bill.AT_THE_CALL, "a model answers, free of charge", "moderations.create"),
    (
        Bill.AT_THE_CALL,
        "an assistant runs: billed here where the call waits for the end, else when it is told",
        """
        beta.threads.{create_and_run,create_and_run_poll,create_and_run_stream}
        beta.threads.runs.{create,create_and_poll,create_and_stream,stream}
        """,
    ),
    (
        Bill.AT_THE_CALL,
        "billed by the second, the session or the training, of which nothing is told here: openly unknown",
        """
        videos.{create,create_and_poll,edit,extend,remix} containers.create fine_tuning.jobs.create
        fine_tuning.alpha.graders.run
        """,
    ),
    (
        Bill.WHEN_TOLD,
        "something that runs in the background tells its usage once it is done, however often it is asked",
        """
        responses.{retrieve,cancel} beta.responses.{retrieve,cancel} batches.{retrieve,cancel}
        beta.threads.runs.{retrieve,cancel,update,poll,submit_tool_outputs,submit_tool_outputs_and_poll}
        beta.threads.runs.submit_tool_outputs_stream evals.runs.{retrieve,cancel}
        beta.agents.sessions.{create,stream} beta.agents.sessions.events.stream
        beta.agents.sessions.turns.retrieve beta.agents.sessions.subagents.turns.retrieve
        """,
    ),
    (
        Bill.ON_THE_SOCKET,
        "each response tells its tokens over the socket, and so does each transcription",
        "realtime.connect beta.realtime.connect responses.connect beta.responses.connect",
    ),
    (
        Bill.ELSEWHERE,
        "a session is billed by the second, or by what goes over a call that somebody else is in",
        """
        realtime.translations.connect live.{connect,create} live.forks.connect live.sideband.connect
        live.sessions.{accept,fork,hangup,refer,reject} realtime.calls.{accept,create,hangup,refer,reject}
        """,
    ),
    (
        Bill.ELSEWHERE,
        "only the key or the session with which somebody else makes the calls",
        """
        realtime.client_secrets.create realtime.translations.client_secrets.create beta.realtime.sessions.create
        beta.realtime.transcription_sessions.create beta.chatkit.sessions.create
        """,
    ),
    (
        Bill.ELSEWHERE,
        "only starts or feeds what is told by its turns, its runs or its batch",
        """
        beta.agents.sessions.events.create beta.agents.automations.{pause,resume}
        beta.agents.automations.invocations.create batches.create evals.runs.create
        """,
    ),
    (
        Bill.NEVER,
        "a list tells again what was billed before",
        """
        batches.list beta.threads.runs.list evals.runs.list beta.agents.sessions.turns.list
        beta.agents.sessions.subagents.turns.list chat.completions.list beta.chat.completions.list videos.list
        fine_tuning.jobs.list
        """,
    ),
    (
        Bill.NEVER,
        "what was billed when it was made, or is billed as part of a run",
        """
        chat.completions.{retrieve,update,delete} chat.completions.messages.list
        beta.chat.completions.{retrieve,update,delete} beta.chat.completions.messages.list
        responses.delete responses.input_items.list beta.responses.delete beta.responses.input_items.list
        beta.threads.runs.steps.{list,retrieve} videos.{retrieve,poll,delete,download_content}
        fine_tuning.jobs.{retrieve,cancel,pause,resume,list_events} fine_tuning.jobs.checkpoints.list
        evals.runs.delete evals.runs.output_items.{list,retrieve} beta.agents.sessions.{retrieve,list,update,delete}
        beta.agents.sessions.items.list beta.agents.sessions.traces.list beta.agents.sessions.turns.items.list
        beta.agents.sessions.subagents.{list,retrieve} beta.agents.sessions.subagents.items.list
        beta.agents.sessions.subagents.turns.items.list live.sessions.download_recording
        """,
    ),
    (
        Bill.NEVER,
        "counts or checks without a model's answer",
        """
        responses.input_tokens.count beta.responses.input_tokens.count fine_tuning.alpha.graders.validate
        content_provenance_checks.create
        """,
    ),
    (
        Bill.NEVER,
        f"{_STORED}; storage costs by the day, not by the call",
        """
        files.{create,retrieve,list,delete,content,retrieve_content,wait_for_processing}
        uploads.{create,cancel,complete}
        uploads.upload_file_chunked uploads.parts.create vector_stores.{create,retrieve,update,list,delete,search}
        vector_stores.files.{create,retrieve,update,list,delete,content,create_and_poll,poll,upload,upload_and_poll}
        vector_stores.file_batches.{create,retrieve,cancel,create_and_poll,list_files,poll,upload_and_poll}
        containers.{retrieve,list,delete} containers.files.{create,retrieve,list,delete}
        containers.files.content.retrieve
        videos.{create_character,get_character} audio.voices.{create,delete}
        audio.voice_consents.{create,retrieve,update,list,delete}
        skills.{create,retrieve,update,list,delete} skills.content.retrieve
        skills.versions.{create,retrieve,list,delete}
        skills.versions.content.retrieve beta.agents.environments.{create,list,retrieve}
        beta.agents.environments.files.{create,list,prepare,prepare_directory,upload}
        beta.agents.sessions.artifacts.{content,delete,for_result,list,retrieve}
        """,
    ),
    (
        Bill.NEVER,
        _STORED,
        """
        models.{retrieve,list,delete} conversations.{create,retrieve,update,delete}
        conversations.items.{create,retrieve,list,delete} evals.{create,retrieve,update,list,delete}
        beta.assistants.{create,retrieve,update,list,delete} beta.threads.{create,retrieve,update,delete}
        beta.threads.messages.{create,retrieve,update,list,delete} beta.chatkit.sessions.cancel
        beta.chatkit.threads.{retrieve,list,delete,list_items} beta.agents.{create,retrieve,update,list,delete}
        beta.agents.automations.{create,delete,list,retrieve,update} beta.agents.automations.invocations.{list,retrieve}
        beta.agents.environments.templates.{create,delete,list,retrieve,update}
        beta.agents.vaults.{create,delete,list,retrieve,update}
        beta.agents.vaults.credentials.{create,delete,list,retrieve,update}
        """,
    ),
    (
        Bill.NEVER,
        _SETTINGS,
        """
        fine_tuning.checkpoints.permissions.{create,delete,list,retrieve} safety.alerts.retrieve safety.cases.retrieve
        webhooks.{create,delete,list,retrieve,rotate_secret,test,unwrap,update,verify_signature}
        webhooks.event_types.list
        """,
    ),
    (
        Bill.ELSEWHERE,
        "the transport: its calls are told by their paths",
        "get post put patch delete get_api_list request",
    ),
    (Bill.NEVER, "sends nothing", "close copy is_closed platform_headers"),
)
#: Nothing below here calls a model: reports, keys and limits of an organization.
ADMINISTRATION = "admin.organization."


def _expanded(methods: str) -> Iterator[str]:
    for each in methods.split():
        resource, brace, names = each.partition("{")
        yield from (f"{resource}{name}" for name in names.rstrip("}").split(",")) if brace else (each,)


ROWS = {method: Row(bill, why) for bill, why, methods in _TABLE for method in _expanded(methods)}


def methods_of(client: Any) -> Iterator[str]:
    """Yield the dotted name of each public method of a client and of all its resources."""
    for name in sorted(dir(type(client))):
        if name.startswith(("_", "with_")):
            continue
        found = inspect.getattr_static(type(client), name)
        if not isinstance(found, cached_property | property):
            if callable(found):
                yield name
            continue
        inner = getattr(client, name)
        if type(inner).__module__.startswith(f"{openai.__name__}.resources"):
            yield from (f"{name}.{each}" for each in methods_of(inner))
