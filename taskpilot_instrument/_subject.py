"""What a policy or guardrail is asked about, and the text that is in it."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from itertools import groupby
from typing import Any, Final, Literal, get_args

from taskpilot_instrument._operation import Operation
from taskpilot_instrument.semconv import Kind

#: When it is asked: before an agent runs, before a tool runs, after an agent has run.
Moment = Literal["agent_input", "tool_call", "agent_output"]
MOMENTS: Final[tuple[Moment, ...]] = get_args(Moment)

_MOST_CHARACTERS: Final = 1_000_000
_MOST_VALUES: Final = 10_000
_DEEPEST: Final = 16
#: Characters that a reader does not see and that would hide a word: soft hyphens, zero-width and directional marks,
#: variation selectors. Unicode calls them default-ignorable.
_UNSEEN: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


class Subject:
    """One thing to be judged; what is expensive to know is found out when it is asked for.

    :ivar moment: ``agent_input``, ``tool_call`` or ``agent_output``.
    """

    #: What has not been asked for yet; no slots, so that most subjects, of which little is asked, cost little.
    _text: str | None = None
    _normal: str | None = None
    _folded: str | None = None

    def __init__(
        self,
        moment: Moment,
        operation: Operation,
        get: Callable[[], Any] | None,
        value: Any = None,
        whole: bool = True,  # noqa: FBT001, FBT002 - given by place, on the hot path
    ) -> None:
        self.moment = moment
        self._operation = operation
        self._get = get
        self._value = value
        self._whole = whole

    @property
    def agent(self) -> str | None:
        """Whose input, call or output it is; None where no agent runs."""
        return self._operation.agent_name

    @property
    def tool(self) -> str | None:
        """The tool that is to be called; None for agents."""
        return self._operation.name if self._operation.kind is Kind.TOOL else None

    @property
    def value(self) -> Any:
        """What was given, by name (a list where it has no names), or what the agent returned."""
        if self._get is not None:
            self._value, self._get = self._get(), None
        return self._value

    @property
    def arguments(self) -> dict[str, Any]:
        """What an agent or tool was given, by name, else by position (``"0"``, ``"1"``, …); nothing of an output."""
        value = self.value
        if self.moment == "agent_output":
            return {}
        return value if isinstance(value, dict) else {str(place): each for place, each in enumerate(value)}

    @property
    def text(self) -> str:
        """Every text and number in the value, one a line: in lists, mappings, dataclasses and pydantic models too.

        Other objects are not looked into; see :attr:`value`. At most 1,000,000 characters: see :attr:`is_whole`.
        """
        if self._text is None:
            value = self.value if self._value is None else self._value
            if type(value) is dict and len(value) == 1:
                (value,) = value.values()
            if type(value) is str and len(value) <= _MOST_CHARACTERS:
                self._text = value
            else:
                found = _Text()
                found.take(value, 0)
                self._text = "\n".join(found.parts)
                self._whole = self._whole and found.whole
        return self._text

    @property
    def normal(self) -> str:
        """The text in Unicode's normal form NFKC, without characters that nobody sees."""
        if self._normal is None:
            text = self.text
            self._normal = text if text.isascii() else normalised(text)
        return self._normal

    @property
    def folded(self) -> str:
        """The normal text without case, with one blank for any white space: what keywords are looked for in."""
        if self._folded is None:
            text = self.text
            self._folded = folded(text if text.isascii() else self.normal)
        return self._folded

    @property
    def is_whole(self) -> bool:
        """False where :attr:`text` is not everything, because there is too much of it."""
        self.text  # noqa: B018 - whether it is whole is found out with it
        return self._whole

    def require_whole(self) -> None:
        """Do nothing where :attr:`text` is everything.

        :raises TextTooLongError: where it is not.
        """
        if self._text is None:
            self.text  # noqa: B018 - whether it is whole is found out with it
        if not self._whole:
            raise TextTooLongError("there is more text than is looked at")

    @property
    def workflow(self) -> str | None:
        """The workflow around it."""
        return self._operation.workflow_name

    @property
    def run(self) -> object:
        """One object for everything in the outermost workflow or agent run; it can be held weakly."""
        return self._operation.outermost

    @property
    def request_id(self) -> str:
        """The request that the run answers."""
        return self._operation.ids.request_id

    @property
    def session_id(self) -> str | None:
        """The session that the run belongs to."""
        return self._operation.ids.session_id

    @property
    def user_id(self) -> str | None:
        """The user that the run is for."""
        return self._operation.ids.user_id

    def __repr__(self) -> str:
        # Without what was said: a repr is soon in a log.
        return f"Subject(moment={self.moment!r}, agent={self.agent!r}, tool={self.tool!r})"


def normalised(text: str) -> str:
    """Return the text in normal form NFKC, without characters that nobody sees."""
    return text if text.isascii() else unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def folded(normal: str) -> str:
    """Return normalised text without case, with one blank for any white space."""
    text = normal.casefold()
    if text.isascii():
        # Most text has its blanks already as they should be, and to look is faster than to part and join it.
        return text.strip() if text.isprintable() and "  " not in text else " ".join(text.split())
    return " ".join(unicodedata.normalize("NFKC", text).split())


class TextTooLongError(Exception):
    """Say that a text could not be judged whole."""


class _Text:
    """Gather the text in a value, up to a length, a depth and a number of values."""

    __slots__ = ("_values", "parts", "room", "whole")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.room = _MOST_CHARACTERS
        self.whole = True
        self._values = 0

    def take(self, value: Any, depth: int) -> None:
        self._values += 1
        if depth > _DEEPEST or self._values > _MOST_VALUES or self.room <= 0:
            self.whole = False
        elif isinstance(value, str):
            self.whole = self.whole and len(value) <= self.room
            self.parts.append(value[: self.room])
            self.room -= len(value)
        elif isinstance(value, bool) or value is None:
            pass
        elif isinstance(value, int | float | Decimal):
            self.take(str(value), depth)
        else:
            for each in _inside(value):
                self.take(each, depth + 1)


def _inside(value: Any) -> Iterator[Any]:
    """Yield what a container holds; nothing of any other object, which may be a client or a connection."""
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, each.name, None) for each in dataclasses.fields(value))
    elif hasattr(type(value), "__pydantic_fields__"):
        yield from vars(value).values()


class Tape:
    """Keep what a stream yields, up to a length, to be judged when it is over."""

    __slots__ = ("_items", "_room", "whole")

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._room = _MOST_CHARACTERS
        #: False where not everything was kept.
        self.whole = True

    def keep(self, item: Any) -> None:
        """Keep one item while there is room."""
        self._room -= len(item) if type(item) is str else _MOST_CHARACTERS // _MOST_VALUES
        if self._room >= 0:
            self._items.append(item)
        else:
            self.whole = False

    @property
    def value(self) -> Any:
        """The text, where all items are text, else the items, with text that follows on text joined to it."""
        joined: list[Any] = []
        for is_text, group in groupby(self._items, lambda item: type(item) is str):
            run = list(group)
            joined += ["".join(run)] if is_text else run
        return joined[0] if len(joined) == 1 and type(joined[0]) is str else joined
