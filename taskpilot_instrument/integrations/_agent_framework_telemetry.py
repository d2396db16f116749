"""The spans and metrics that agent-framework makes itself, which would tell the same as ours."""

from typing import Any

from taskpilot_instrument._operation import current


class Quiet:
    """Switch the framework's own spans and metrics off beneath operations of ours, and only there."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._original: Any = None
        self.found = isinstance(vars(settings).get("ENABLED"), property)

    @property
    def target(self) -> str:
        """Name what is switched, for people."""
        return "agent_framework.observability.ObservabilitySettings.ENABLED"

    def apply(self) -> bool:
        """Put a property in place of theirs that asks theirs where nothing of ours runs."""
        if self.found and self._original is None:
            original = self._original = self._settings.ENABLED
            self._settings.ENABLED = property(lambda settings: current() is None and original.fget(settings))
        return self.found

    def undo(self) -> None:
        """Put theirs back."""
        if self._original is not None:
            self._settings.ENABLED, self._original = self._original, None


_quiets: list[Quiet] = []


def quiet() -> Quiet:
    """Return the one switch of this process."""
    if not _quiets:
        from agent_framework.observability import ObservabilitySettings

        _quiets.append(Quiet(ObservabilitySettings))
    return _quiets[0]
