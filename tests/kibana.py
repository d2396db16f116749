"""As much of Elasticsearch and Kibana as the files in observability/kibana use: pipeline, mappings, query languages.

Everything here is stricter than the real thing, and fails at what it does not know.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

Document = dict[str, Any]


class Refused(Exception):
    """The document or the query would be refused."""


# --- ingest pipeline ----------------------------------------------------------------------------

CONDITIONS: dict[str, Callable[[Document], bool]] = {
    "ctx.agent instanceof Map": lambda document: isinstance(document.get("agent"), dict),
    "ctx.event_name == null": lambda document: document.get("event_name") is None,
    "ctx.timestamp != null": lambda document: document.get("timestamp") is not None,
}


def run_pipeline(pipeline: dict[str, Any], document: Document) -> Document:
    """Return what a pipeline makes of a document."""
    assert set(pipeline) == {"description", "processors", "on_failure"}
    document = copy.deepcopy(document)
    try:
        _run_all(pipeline["processors"], document)
    except Refused:
        _run_all(pipeline["on_failure"], document)
    return document


def _run_all(processors: list[dict[str, Any]], document: Document) -> None:
    for processor in processors:
        ((name, given),) = processor.items()
        options = dict(given)
        options.pop("description", None)
        condition, on_failure = options.pop("if", None), options.pop("on_failure", None)
        if condition is not None and not CONDITIONS[condition](document):
            continue
        try:
            PROCESSORS[name](document, **options)
        except Refused:
            if on_failure is None:
                raise
            _run_all(on_failure, document)


def _rename(document: Document, *, field: str, target_field: str) -> None:
    if field not in document or target_field in document:
        raise Refused(field)
    document[target_field] = document.pop(field)


def _remove(document: Document, *, field: list[str], ignore_missing: bool) -> None:
    for name in field:
        if document.pop(name, None) is None and not ignore_missing:
            raise Refused(name)


def _json(document: Document, *, field: str, add_to_root: bool, add_to_root_conflict_strategy: str) -> None:
    assert (add_to_root, add_to_root_conflict_strategy) == (True, "replace")
    try:
        parsed = json.loads(document[field])
    except (KeyError, ValueError) as error:
        raise Refused(field) from error
    if not isinstance(parsed, dict):
        raise Refused("cannot add non-map fields to root of document")
    document.update(parsed)


def _date(document: Document, *, field: str, target_field: str, formats: list[str]) -> None:
    assert formats == ["ISO8601"]
    try:
        datetime.fromisoformat(document[field])
    except (TypeError, ValueError) as error:
        raise Refused(field) from error
    document[target_field] = document[field]


def _append(document: Document, *, field: str, value: list[str]) -> None:
    document[field] = [*document.get(field, []), *value]


PROCESSORS: dict[str, Callable[..., None]] = {
    "rename": _rename,
    "remove": _remove,
    "json": _json,
    "date": _date,
    "append": _append,
}

# --- mappings -----------------------------------------------------------------------------------


def fields_of(mappings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the type of each mapped field by its whole name."""
    found: dict[str, str] = {}
    for name, mapping in mappings["properties"].items():
        if "properties" in mapping:
            found |= fields_of(mapping, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = mapping["type"]
    return found


def index(mappings: dict[str, Any], document: Document, prefix: str = "") -> Document:
    """Return the fields that can be searched, by their whole names.

    :raises Refused: where a value does not fit its field's type, without any of Elasticsearch's conversions.
    """
    found: Document = {}
    for name, mapping in mappings["properties"].items():
        value = document.get(name)
        if value is None:
            continue
        if "properties" in mapping:
            if not isinstance(value, dict):
                raise Refused(f"{prefix}{name} is an object, not {value!r}")
            found |= index(mapping, value, f"{prefix}{name}.")
            continue
        for each in value if isinstance(value, list) else [value]:
            if not TYPES[mapping["type"]](each):
                raise Refused(f"{prefix}{name} is of the type {mapping['type']}, which {each!r} is not")
        if len(str(value)) <= mapping.get("ignore_above", 10**9):
            found[f"{prefix}{name}"] = value
    return found


def _is_date(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value) is not None


TYPES: dict[str, Callable[[object], bool]] = {
    "keyword": lambda value: isinstance(value, str),
    "text": lambda value: isinstance(value, str),
    "long": lambda value: type(value) is int and abs(value) < 2**63,
    "double": lambda value: type(value) in {int, float},
    "date": _is_date,
}

# --- KQL, and of Lucene's syntax what has no other meaning there -----------------------------------

Predicate = Callable[[Document], bool]
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|<=|>=|[():<>]|[^\s():<>"{}*\\]+)')
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
}


class _Kql:
    """Parse by recursive descent: or, and, not, parentheses, ``field: value``, ``field: (a or b)``, ``field > 1``."""

    def __init__(self, query: str, fields: dict[str, str]) -> None:
        self.fields = fields
        self.tokens = list(self._split(query))

    def _split(self, query: str) -> Iterator[str]:
        at = 0
        while at < len(query.rstrip()):
            found = _TOKEN.match(query, at)
            if found is None:
                raise Refused(f"syntax error at {query[at:]!r}")
            yield found[1]
            at = found.end()

    def parse(self) -> Predicate:
        if not self.tokens:
            return lambda _: True
        predicate = self.any_of()
        if self.tokens:
            raise Refused(f"unexpected {self.tokens[0]!r}")
        return predicate

    def take(self, *expected: str) -> str:
        if not self.tokens or (expected and self.tokens[0] not in expected):
            raise Refused(f"expected {expected}, found {self.tokens[:1]}")
        return self.tokens.pop(0)

    def at(self, *tokens: str) -> bool:
        return bool(self.tokens) and self.tokens[0].lower() in tokens

    def any_of(self) -> Predicate:
        parts = [self.all_of()]
        while self.at("or"):
            self.take()
            parts.append(self.all_of())
        return lambda document: any(part(document) for part in parts)

    def all_of(self) -> Predicate:
        parts = [self.one()]
        while self.at("and"):
            self.take()
            parts.append(self.one())
        return lambda document: all(part(document) for part in parts)

    def one(self) -> Predicate:
        if self.at("not"):
            self.take()
            inner = self.one()
            return lambda document: not inner(document)
        if self.at("("):
            self.take()
            inner = self.any_of()
            self.take(")")
            return inner
        field = self.word()
        if field not in self.fields:
            raise Refused(f"no such field: {field}")
        if self.at(*_COMPARE):
            compare, bound = _COMPARE[self.take()], self.word()
            return lambda document: field in document and compare(document[field], float(bound))
        self.take(":")
        values = self.values()
        return lambda document: any(_matches(document.get(field), value, self.fields[field]) for value in values)

    def values(self) -> list[str]:
        if not self.at("("):
            return [self.word()]
        self.take("(")
        values = [self.word()]
        while self.at("or"):
            self.take()
            values.append(self.word())
        self.take(")")
        return values

    def word(self) -> str:
        token = self.take()
        if token in {"(", ")", ":", *_COMPARE}:
            raise Refused(f"expected a value, found {token!r}")
        return json.loads(token) if token.startswith('"') else token  # type: ignore[no-any-return]  # a string


def _matches(value: object, wanted: str, kind: str) -> bool:
    if value is None:
        return False
    if kind == "text":
        return set(re.findall(r"\w+", wanted.lower())) <= set(re.findall(r"\w+", str(value).lower()))
    return value == (wanted if kind == "keyword" else float(wanted))


def kql(query: str, fields: dict[str, str]) -> Predicate:
    """Return what a KQL query asks of an indexed document.

    :param fields: types by name, as the mappings give them.
    :raises Refused: for a syntax error and for a field that is not mapped.
    """
    return _Kql(query, fields).parse()


def lucene(query: str, fields: dict[str, str]) -> Predicate:
    """Return what one clause of Lucene's syntax asks: ``field: >1`` or ``field: "value"``, on exact fields.

    :raises Refused: for anything else.
    """
    found = re.fullmatch(r'(\w+): ?(?:([<>]=?)([\d.]+)|("[^"]*"))', query)
    if found is None or fields.get(found[1]) not in {"keyword", "double", "long"}:
        raise Refused(query)
    field, operator, bound, word = found.groups()
    if operator is None:
        return lambda document: document.get(field) == json.loads(word)
    return lambda document: field in document and _COMPARE[operator](document[field], float(bound))
