"""What the tests of the embedded server share: calls of the real client."""

from typing import Any

import openai
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessageParam,
)

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Create a task"}]
MODEL = "gpt-4o-mini"


def chat(client: openai.OpenAI, **more: Any) -> ChatCompletion:
    """Send one plain chat call."""
    answer: ChatCompletion = client.chat.completions.create(model=MODEL, messages=ASK, **more)
    return answer


def chat_chunks(client: openai.OpenAI, **more: Any) -> list[ChatCompletionChunk]:
    """Send one streamed chat call and read it to its end."""
    return list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, **more))
