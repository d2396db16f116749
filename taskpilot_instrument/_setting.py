"""Declare one setting: what it may be, what it says, and which environment variables speak of it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final, NamedTuple

from taskpilot_instrument._forms import Form, complaint
from taskpilot_instrument.errors import ConfigurationError

#: Where a field of the settings keeps its declaration.
SPEC: Final = "spec"
#: What reading a variable returns that says nothing about the setting.
SILENT: Final = object()


class Source(NamedTuple):
    """An environment variable that speaks of a setting.

    :param form: what the variable's text has to be.
    :param read: read that text; returns ``SILENT`` where it says nothing about the setting.
    """

    variable: str
    form: Form
    read: Callable[[str], object]


class Spec(NamedTuple):
    """What a setting may be, what it is where nothing is said, and where it is looked for."""

    form: Form
    default: object
    doc: str
    sources: tuple[Source, ...]

    def from_environment(self, environ: Mapping[str, str]) -> object:
        """Return the value that the first variable gives that says something, else the default."""
        for variable, form, read in self.sources:
            given = environ.get(variable, "").strip()
            if not given:
                continue
            try:
                value = read(given)
                if value is not SILENT:
                    return self.form.accept(value)
            except ValueError:
                raise ConfigurationError(complaint(variable, given, form, self._taking(read))) from None
        return self.default

    def _taking(self, read: Callable[[str], object]) -> Callable[[str], object]:
        def take(text: str) -> object:
            value = read(text)
            return value if value is SILENT else self.form.accept(value)

        return take


class SettingDoc(NamedTuple):
    """One row of the settings table.

    :param variables: environment variables, the first that is set wins.
    """

    name: str
    variables: tuple[str, ...]
    type: str
    default: str
    doc: str


def setting(form: Form, doc: str, *variables: str | Source, default: object) -> Any:
    """Declare a setting; the result is typed Any so that the field's own annotation counts."""
    sources = tuple(
        variable if isinstance(variable, Source) else Source(variable, form, form.read or form.accept)
        for variable in variables
    )
    spec = Spec(form, default, doc, sources)
    return field(default_factory=lambda: spec.from_environment(os.environ), metadata={SPEC: spec})
