"""What puts an integration in force and takes it away again, beside patches of a class's methods."""

from types import ModuleType
from typing import Any, Protocol

from taskpilot_instrument.patches._patching import Patch, Wrapper


class Switch(Protocol):
    """What ``instrument()`` switches on and ``uninstrument()`` off."""

    #: True where there was something to switch.
    found: bool

    @property
    def target(self) -> str:
        """Name what is switched, for people."""

    def apply(self) -> bool:
        """Switch on; return whether there was something to switch. Twice is the same as once."""

    def undo(self) -> None:
        """Switch off."""


class ModulePatch(Patch):
    """A patch of a module's function, where others look it up by its name in that module."""

    def __init__(self, owner: ModuleType, name: str, wrapper: Wrapper, *, optional: bool = False) -> None:
        holder: Any = owner  # a module has names as a class has
        super().__init__(holder, name, wrapper, optional=optional)
        self._module = owner.__name__

    @property
    def target(self) -> str:
        """Name the patched function for people."""
        return f"{self._module}.{self.name}"
