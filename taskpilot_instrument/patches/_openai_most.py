"""Estimate from above what a request may use: read where a gate is to be asked before it is sent.

It is an estimate, because only the provider has the tokenizer. Of what people and programs write it is above the count
of OpenAI's tokenizers by half or more. What these know badly (ids, rare scripts, letters in no order) may have more
tokens, up to twice as many.
"""

from collections.abc import Mapping
from typing import Any, Final

from taskpilot_instrument import semconv
from taskpilot_instrument._records import CONVERSATION, Most

_CONTENT, _DEFINITION, _LIMIT, _CHOICES, _OTHER = range(5)
#: What the members of a request are for; those that change nothing are not among them.
_MEMBERS: Final = {
    **dict.fromkeys(("messages", "input", "suffix", "instructions"), _CONTENT),
    **dict.fromkeys(("tools", "functions", "response_format", "text"), _DEFINITION),
    **dict.fromkeys(("max_completion_tokens", "max_output_tokens", "max_tokens"), _LIMIT),
    **dict.fromkeys(("n", "best_of"), _CHOICES),
    **dict.fromkeys(("prompt", "conversation", "previous_response_id", "modalities", "service_tier"), _OTHER),
}
#: What writes until it is done, or told to stop.
_WORDS: Final = frozenset({semconv.OPERATION_CHAT, semconv.OPERATION_COMPLETION})
_TEXT_ONLY: Final = _WORDS | {semconv.OPERATION_EMBEDDINGS}
#: A named tuple by its name takes twice as long to make.
_new: Final = tuple.__new__
#: Tools whose result the caller sends; what the others find becomes input inside the call.
_OWN_TOOLS: Final = frozenset({"function", "custom"})
#: A file or search of the provider's, whose content is not in the request.
_TOKENS_PER_REFERENCE: Final = 10_000
#: High quality, 1536 x 1024 pixels, and three previews.
_TOKENS_PER_PICTURE_MADE: Final = 6_240 + 3 * 100
#: Speech is 1,250 tokens and more than 600 characters a minute.
_TOKENS_PER_CHARACTER_SPOKEN: Final = 2


def most_of(body: Mapping[str, Any], operation: str, url: str = "", uploads: int = 0) -> Most:
    """Return the most that a request may use.

    :param body: its JSON members.
    :param operation: ``gen_ai.operation.name`` of its endpoint.
    :param url: tells sound from pictures, which are one operation.
    :param uploads: how many files go beside the members.
    """
    if operation == semconv.OPERATION_MODERATION:
        return Most(0, 0)
    estimate = Estimate(body.get("model"), _SPECIAL, operation not in _TEXT_ONLY)
    given, limit, answers, prompts = uploads and uploads * estimate.per_picture, 0, 1, 1
    is_told, has_more = True, False
    for name, value in body.items():
        use = _MEMBERS.get(name)
        if use is None:
            continue
        try:
            if use == _CONTENT:
                given += estimate.of(value)
            elif use == _LIMIT:
                limit = max(limit, _whole(value))
            elif use == _CHOICES:
                answers = max(answers, _whole(value))
            elif use == _DEFINITION:
                given += _PLAIN.of(value) + _TOKENS_PER_REFERENCE * _hosted(name, value)
            else:
                has_more = True
                if name == "prompt":
                    prompts = _prompts(value)
                    given += estimate.of(value)
        except (TypeError, RecursionError):
            is_told = False  # something that can be read once, by the client; or what it cannot send either
    answers *= prompts
    made: int | None = limit * answers if limit else None
    if operation not in _WORDS:
        is_sound = estimate.has_media and "/audio/" in url
        made = made or _unlimited(body, operation, answers, is_sound=is_sound)
        is_told = is_told and not (is_sound and uploads)  # how long a recording is, only the provider finds out
    most: Most = _new(Most, (given if is_told else None, made, answers, None, estimate.has_media, None))
    return _with_more(most, body) if has_more else most


def _with_more(most: Most, body: Mapping[str, Any]) -> Most:
    """Add what few requests have."""
    modalities, tier = body.get("modalities"), body.get("service_tier")
    return most._replace(
        continues=_continued(body),
        has_media=most.has_media or (isinstance(modalities, list) and "audio" in modalities),
        service_tier=tier if isinstance(tier, str) and tier != "auto" else None,
    )


def _whole(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _hosted(name: str, tools: Any) -> int:
    """Count the tools that find input inside the call; the caller sends what the others find."""
    if name != "tools" or not isinstance(tools, list):
        return 0
    return sum(isinstance(tool, Mapping) and tool.get("type", "function") not in _OWN_TOOLS for tool in tools)


def _prompts(prompt: Any) -> int:
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    return len(prompt) if several else 1


def _unlimited(body: Mapping[str, Any], operation: str, answers: int, *, is_sound: bool) -> int | None:
    """Return the most output of a request that sets no limit; None where nothing else does."""
    if operation == semconv.OPERATION_EMBEDDINGS:
        return 0
    if is_sound:
        spoken = body.get("input")
        return _TOKENS_PER_CHARACTER_SPOKEN * len(spoken) if isinstance(spoken, str) else None
    return _TOKENS_PER_PICTURE_MADE * answers if operation == semconv.OPERATION_IMAGE else None


def _continued(body: Mapping[str, Any]) -> str | None:
    """Name what is input too, though the provider has it: a conversation, an earlier response, a prompt's template."""
    conversation = body.get("conversation")
    if conversation is not None:
        return f"{CONVERSATION}{conversation.get('id') if isinstance(conversation, Mapping) else conversation}"
    earlier = body.get("previous_response_id")
    if earlier is not None:
        return str(earlier)
    return "prompt" if isinstance(body.get("prompt"), Mapping) else None


# --- input --------------------------------------------------------------------------------------

#: What is between the members of a message, or of anything else that has members.
_TOKENS_PER_PART: Final = 4
_PICTURES: Final = frozenset({"image_url", "image", "input_image_mask"})
#: The largest that is not scaled down. gpt-4o-mini counts pictures so that they cost what those of gpt-4o do, at a
#: lower rate: 2,833 tokens and 5,667 for each of up to eight tiles.
_TOKENS_PER_PICTURE: Final = 10_000
_TOKENS_PER_PICTURE_OF_MINI: Final = 48_169
_MINI: Final = "gpt-4o-mini"
#: Ten tokens a second; the poorest recording that anybody sends has 8 kbit/s, in base64 1,333 characters.
_CHARACTERS_PER_TOKEN_OF_SOUND: Final = 128
#: Pages are read as text and as pictures: together fewer tokens than a fourth of the file's characters in base64.
_CHARACTERS_PER_TOKEN_OF_FILE: Final = 4
_REFERENCES: Final = frozenset({"file_id", "file_url"})
_SPECIAL: Final = _PICTURES | _REFERENCES | {"file_data", "input_audio"}
_DEEPEST: Final = 50
_LISTS: Final = (list, tuple)
_NUMBERS: Final = (int, float)


class Estimate:
    """Estimate the input tokens of JSON.

    :param model: whom it is sent to.
    :param special: members whose value is no text.
    :param has_media: whether there is sound or a picture; becomes true where one is found.
    """

    __slots__ = ("has_media", "model", "special")

    def __init__(self, model: object, special: frozenset[str], has_media: bool) -> None:  # noqa: FBT001 - by place
        self.model = model
        self.special = special
        self.has_media = has_media

    @property
    def per_picture(self) -> int:
        """The tokens of the largest picture."""
        is_mini = isinstance(self.model, str) and _MINI in self.model
        return _TOKENS_PER_PICTURE_OF_MINI if is_mini else _TOKENS_PER_PICTURE

    def of(self, value: Any, depth: int = 0) -> int:
        """Return the tokens of a value.

        :raises TypeError: for what is no JSON, such as an iterator.
        """
        if isinstance(value, str):
            return text_tokens(value)
        if depth > _DEEPEST:
            return text_tokens(repr(value))
        if isinstance(value, _LISTS):
            if value and type(value[0]) is int:
                return len(value)  # tokens already
            count = 0
            for item in value:
                count += self._members(item, depth + 1) if type(item) is dict else self.of(item, depth + 1)
            return count
        if value is None or isinstance(value, _NUMBERS):
            return len(str(value)) // 2 + 1
        if not isinstance(value, dict) and not isinstance(value, Mapping):  # to ask the second takes long
            raise TypeError(type(value))
        return self._members(value, depth)

    def _members(self, value: Mapping[Any, Any], depth: int) -> int:
        count, special = _TOKENS_PER_PART, self.special
        for key, item in value.items():
            if key in special:
                count += self._special(key, item)
            elif type(item) is str:  # nearly all are
                size = len(item)
                count += len(key) + (size // 2 + 1 if size <= _SHORT and item.isascii() else text_tokens(item))
            else:
                count += len(str(key)) + self.of(item, depth + 1)
        return count

    def _special(self, key: str, value: Any) -> int:
        if key in _REFERENCES:
            return _TOKENS_PER_REFERENCE
        if key == "file_data":
            return len(str(value)) // _CHARACTERS_PER_TOKEN_OF_FILE + _TOKENS_PER_PART
        self.has_media = True
        if key in _PICTURES:
            return self.per_picture
        data = value.get("data") if isinstance(value, Mapping) else value
        return len(str(data)) // _CHARACTERS_PER_TOKEN_OF_SOUND + _TOKENS_PER_PART


#: Reads definitions; it has no pictures, so that one is enough for all.
_PLAIN: Final = Estimate(None, frozenset(), False)  # noqa: FBT003 - by place

#: Words are made of these, several a token. Digits, capitals and signs may be a token each where they come in no order,
#: as in keys and in what is encoded.
_OF_WORDS: Final = b"abcdefghijklmnopqrstuvwxyz \n"
_ASCII: Final = bytes(range(128))
_LETTERS_PER_TOKEN: Final = 3
_BYTES_PER_TOKEN: Final = 2
_SHORT: Final = 12


def text_tokens(text: str) -> int:
    """Return how many tokens a text has, estimated from above."""
    if len(text) <= _SHORT and text.isascii():
        return len(text) // 2 + 1
    whole = text.encode("utf-8", "replace")
    signs = whole.translate(None, _OF_WORDS)
    beyond = 0 if text.isascii() else len(signs.translate(None, _ASCII))
    letters = len(whole) - len(signs)
    return letters // _LETTERS_PER_TOKEN + len(signs) - beyond + beyond // _BYTES_PER_TOKEN + 1
