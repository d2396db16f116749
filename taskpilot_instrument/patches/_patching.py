"""Put our layer on a method of somebody else's class, and take only ours away again."""

import logging
from collections.abc import Callable
from typing import Any, Final

import wrapt

_log = logging.getLogger("taskpilot_instrument")
_OURS: Final = "_self_taskpilot_patch"

#: A wrapt wrapper: (wrapped, instance, args, kwargs) -> result.
Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


class Patch:
    """One method of one class, patched apart from all others, so that one that is missing stops no other.

    :param owner: the class that defines the method.
    :param name: the method.
    :param wrapper: called in its place with the original.
    :param optional: True where the patch only adds detail: its absence is reported, not warned about.
    """

    def __init__(self, owner: type, name: str, wrapper: Wrapper, *, optional: bool = False) -> None:
        self.owner = owner
        self.name = name
        self.optional = optional
        self._wrapper = wrapper
        self._layer: Any = None
        #: True where the method was there to be patched.
        self.found = False

    @property
    def target(self) -> str:
        """Name the patched method for people."""
        return f"{self.owner.__module__.partition('.')[0]}.{self.owner.__qualname__}.{self.name}"

    def apply(self) -> bool:
        """Put our layer on top; return whether the method was found."""
        original = self.owner.__dict__.get(self.name)
        if original is None or not callable(original):
            log = _log.debug if self.optional else _log.warning
            log("taskpilot_instrument: %s was not found; calls through it are not seen", self.target)
            return False
        self.found = True
        if _find_ours(original) is None:
            self._layer = wrapt.FunctionWrapper(original, self._wrapper)
            setattr(self._layer, _OURS, True)
            setattr(self.owner, self.name, self._layer)
        return True

    def undo(self) -> None:
        """Take our layer away, from under other people's layers too where they let us."""
        layer, self._layer = self._layer, None
        if layer is None:
            return
        original = layer.__wrapped__
        top: Any = self.owner.__dict__.get(self.name)
        if top is layer:
            setattr(self.owner, self.name, original)
            return
        above: Any = top
        while above is not None:
            below: Any = getattr(above, "__wrapped__", None)
            if below is layer and isinstance(above, wrapt.FunctionWrapper):
                above.__wrapped__ = original
                return
            above = below
        # Somebody's closure holds our layer and cannot be opened: it stays there and only passes calls on.


def _find_ours(top: Any) -> Any:
    while top is not None:
        if isinstance(top, wrapt.FunctionWrapper) and getattr(top, _OURS, False):
            return top
        top = getattr(top, "__wrapped__", None)
    return None
