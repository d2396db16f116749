"""Notice without being asked where a call met a limit of its model: an answer cut off, a context window nearly full.

It stands before the sinks that end spans and write lines, so that what it notices is on the call's own span.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from taskpilot_instrument import semconv
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._pricebook import Lookup, context_window
from taskpilot_instrument._records import Event, Finished, LLMCall
from taskpilot_instrument.semconv import Outcome

#: From this use of its context window on, in percent, models and summaries begin to lose what was said first.
WINDOW_USE_PERCENT: Final = 80

#: ``error.code`` and ``error.type`` by which providers say that a request is too long for the model.
_CODES: Final = frozenset({
    "context_length_exceeded",  # OpenAI, Azure, Groq, LM Studio
    "context_window_exceeded",
    "ContextWindowExceededError",  # LiteLLM
    "exceed_context_size_error",  # llama.cpp, Ollama
    "model_max_prompt_tokens_exceeded",  # GitHub
    "tokens_limit_reached",  # GitHub
})  # fmt: skip
#: Words of the message where there is no such code.
_PHRASES: Final = (
    r"maximum (?:context|prompt|model) length",  # vLLM, DeepSeek, Mistral, OpenRouter, xAI
    r"context length exceeded|exceeds? (?:the |maximum |model's )*context length",  # Ollama
    r"longer than the model's context length",  # SGLang
    r"(?:exceeds?|exceeded) (?:the |your |model )*context (?:window|limit)",  # OpenAI's responses, Anthropic
    r"contextwindowexceedederror",  # LiteLLM
    r"available context size",  # llama.cpp, Ollama
    r"prompt is too long|input is too long for",  # Anthropic, Bedrock
    r"input tokens exceed the configured limit",  # Azure
    r"maximum number of tokens allowed",  # Gemini
    r"`inputs` tokens \+ `max_new_tokens`",  # Hugging Face TGI
)
_WORDS: Final = re.compile("|".join(_PHRASES), re.IGNORECASE)
#: Further down a message quotes the request.
_READ: Final = 2_000
_TOO_MANY_REQUESTS: Final = 429

Note = Callable[[Event], None]


class TokenWatch:
    """Note each limit of its model that a finished call met; a sink that holds nothing."""

    where = "token_limit"

    def finished(self, record: Finished, /) -> None:
        """Note what limits the call met."""
        call, operation = record.llm, record.operation
        if call is not None and operation is not None:
            watch(record, call, operation, operation.recorder.note)

    def noted(self, event: Event, /) -> None:
        """Do nothing: what is noted comes from here."""


def watch(record: Finished, call: LLMCall, operation: Operation | None, note: Note) -> None:
    """Note each limit of its model that a call met, each once.

    :param operation: where the event belongs.
    """
    usage, reasons = record.usage, call.finish_reasons
    if reasons and not semconv.TOKEN_LIMIT_FINISH_REASONS.isdisjoint(reasons):
        said = f"{_called(record, call)} stopped at the token limit"
        note(hit(semconv.LIMIT_FINISH_LENGTH, record.model, said, operation, reason=semconv.LIMIT_FINISH_LENGTH))
    # Of the other surfaces one call may carry several inputs, each with a window of its own.
    if usage is not None and call.operation == semconv.OPERATION_CHAT:
        window = window_of(call.model, call.response_model, call.provider, call.base_url)
        if window is not None:
            # Several answers share the input, and each has only itself beside it.
            used = (usage.input_tokens or 0) + (usage.output_tokens or 0) // (len(reasons) or 1)
            if used * 100 >= window * WINDOW_USE_PERCENT:
                share = f"{100 * used // window} % of the context window of {window} tokens"
                said = f"{_called(record, call)} used {share}"
                reason = f"{semconv.LIMIT_CONTEXT_WINDOW}: {share}"
                note(hit(semconv.LIMIT_CONTEXT_WINDOW, record.model, said, operation, reason=reason))
    if record.outcome is Outcome.ERROR and is_context_length_error(record.error, record.error_type):
        said = f"{_called(record, call)} was refused: too long for the context window"
        reason = f"{semconv.LIMIT_CONTEXT_WINDOW}: refused by the provider"
        note(hit(semconv.LIMIT_CONTEXT_WINDOW, record.model, said, operation, reason=reason))


def hit(
    limit: str,
    model: str | None,
    message: str,
    operation: Operation | None,
    *,
    reason: str,
    rule: str | None = None,
    decision: str | None = None,
) -> Event:
    """Return the event of one token limit that was hit.

    :param limit: ``finish_length``, ``context_window`` or ``configured``.
    """
    return Event(
        semconv.E_TOKEN_LIMIT_EXCEEDED, semconv.CATEGORY_ERROR, "WARNING", message, operation, rule, decision, reason,
        {semconv.MODEL: model, semconv.L_LIMIT: limit},
    )  # fmt: skip


@lru_cache(256)
def window_of(model: str | None, response_model: str | None, provider: str | None, base_url: str | None) -> int | None:
    """Return the context window of a model in tokens, None where it is unknown; looked up once for each."""
    return context_window(Lookup(model, response_model, provider, base_url, None))


def is_context_length_error(error: BaseException | None, error_type: str | None = None) -> bool:
    """Tell whether a provider refused a request because it is too long for the model.

    By the code of the error where it has one that says so, else by its words. A rate limit of tokens is no such error.

    :param error: what was raised: any client's exception with ``code``, ``type``, ``body`` or words of its own.
    :param error_type: the code of a failure that is no exception.
    """
    if error_type in _CODES:
        return True
    if error is None or getattr(error, "status_code", None) == _TOO_MANY_REQUESTS:
        return False
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    told: list[Any] = [getattr(error, "code", None), getattr(error, "type", None)]
    if isinstance(inner, dict):
        told += [inner.get("code"), inner.get("type")]
    if any(isinstance(code, str) and code in _CODES for code in told):
        return True
    try:
        words = str(error)
    except Exception:  # an exception of the application's that cannot be shown
        return False
    return _WORDS.search(words[:_READ]) is not None


def _called(record: Finished, call: LLMCall) -> str:
    return f"{call.operation} {record.model}" if record.model else call.operation
