"""Dotted names of the Python API, and the figures that they stand for.

A figure is a node: a canonical family with some of its labels fixed and the others summed over.
``llm.cost.agent.PlannerAgent`` is the cost family with ``agent`` fixed; ``llm.cost.total`` fixes nothing. A known name
is thereby read, written and served to Prometheus (under its alias) without a line of its own anywhere else.
"""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Final, NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument.semconv import Outcome, TokenKind


class Node(NamedTuple):
    """One figure.

    :param family: canonical family that holds it.
    :param at: a value for each label of ``DIMENSIONS[family]``; None where the figure sums over that label.
    """

    family: str
    at: tuple[str | None, ...] = ()


#: Labels by which a family can be told apart by name, in the order in which direct writes are laid out.
DIMENSIONS: Final[dict[str, tuple[str, ...]]] = {
    semconv.M_WORKFLOW_RUNS: (semconv.OUTCOME,),
    semconv.M_LLM_COST: (semconv.AGENT, semconv.MODEL),
    semconv.M_LLM_TOKENS: (semconv.MODEL, semconv.L_KIND),
    semconv.M_POLICY_VIOLATIONS: (semconv.AGENT,),
    semconv.M_GUARDRAIL_BLOCKS: (semconv.AGENT, semconv.L_DIRECTION),
    semconv.M_FEEDBACK: (semconv.L_VERDICT,),
    semconv.M_WORKFLOW_DURATION: (),
    semconv.M_AGENT_DURATION: (semconv.AGENT,),
}
HISTOGRAMS: Final = frozenset({semconv.M_WORKFLOW_DURATION, semconv.M_AGENT_DURATION})

_INPUT: Final = {semconv.L_KIND: TokenKind.INPUT.value}
_OUTPUT: Final = {semconv.L_KIND: TokenKind.OUTPUT.value}

#: Dotted name or template, its family, and the labels that it fixes beside those in braces.
_TABLE: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    (semconv.N_WORKFLOW_RUNS, semconv.M_WORKFLOW_RUNS, {}),
    (semconv.N_WORKFLOW_SUCCESS, semconv.M_WORKFLOW_RUNS, {semconv.OUTCOME: Outcome.SUCCESS.value}),
    (semconv.N_WORKFLOW_LATENCY, semconv.M_WORKFLOW_DURATION, {}),
    (semconv.N_AGENT_LATENCY, semconv.M_AGENT_DURATION, {}),
    (semconv.N_COST_TOTAL, semconv.M_LLM_COST, {}),
    (semconv.N_COST_AGENT, semconv.M_LLM_COST, {}),
    (semconv.N_COST_MODEL, semconv.M_LLM_COST, {}),
    (semconv.N_TOKENS_INPUT_TOTAL, semconv.M_LLM_TOKENS, _INPUT),
    (semconv.N_TOKENS_OUTPUT_TOTAL, semconv.M_LLM_TOKENS, _OUTPUT),
    (semconv.N_TOKENS_TOTAL_ALL, semconv.M_LLM_TOKENS, {}),
    (semconv.N_TOKENS_INPUT, semconv.M_LLM_TOKENS, _INPUT),
    (semconv.N_TOKENS_OUTPUT, semconv.M_LLM_TOKENS, _OUTPUT),
    (semconv.N_TOKENS_TOTAL, semconv.M_LLM_TOKENS, {}),
    (semconv.N_CONFIRMED_CORRECT, semconv.M_FEEDBACK, {semconv.L_VERDICT: semconv.VERDICT_CORRECT}),
    (semconv.N_CONFIRMED_INCORRECT, semconv.M_FEEDBACK, {semconv.L_VERDICT: semconv.VERDICT_INCORRECT}),
    (semconv.N_POLICY_VIOLATIONS_TOTAL, semconv.M_POLICY_VIOLATIONS, {}),
    (semconv.N_AGENT_POLICY_VIOLATIONS, semconv.M_POLICY_VIOLATIONS, {}),
    # Two names for the two directions, so what is written under one is what is read under it.
    (semconv.N_AGENT_GUARDRAILS_BLOCKED, semconv.M_GUARDRAIL_BLOCKS, {semconv.L_DIRECTION: semconv.DIRECTION_INPUT}),
    (
        semconv.N_AGENT_GUARDRAILS_OUTPUT_BLOCKED,
        semconv.M_GUARDRAIL_BLOCKS,
        {semconv.L_DIRECTION: semconv.DIRECTION_OUTPUT},
    ),
)

#: How alike two names are, 0 to 1, and by how many characters they differ in length, where one is a slip of the other.
_ALIKE: Final = 0.85
_SLIP: Final = 2


def _node(family: str, labels: dict[str, str]) -> Node:
    return Node(family, tuple(labels.get(dimension) for dimension in DIMENSIONS[family]))


#: Names without a value in them.
STATIC: Final[dict[str, Node]] = {name: _node(family, labels) for name, family, labels in _TABLE if "{" not in name}
_TEMPLATES: Final = tuple(row for row in _TABLE if "{" in row[0])
_PATTERNS: Final = tuple(
    (re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(template)), re.DOTALL), family, labels)
    for template, family, labels in _TEMPLATES
)


def parse(name: str) -> Node | None:
    """Return the figure that a dotted name stands for, or None for a name of the caller's own.

    ``llm.tokens.input.total`` is the total, also where a model is called ``total``.
    """
    if name in STATIC:
        return STATIC[name]
    for pattern, family, labels in _PATTERNS:
        found = pattern.fullmatch(name)
        if found is not None:
            return _node(family, labels | found.groupdict())
    return None


def nearest(name: str) -> str | None:
    """Return the known name that another name looks like a slip of; None where it comes close to none."""
    parts, best, likeness = name.split("."), None, _ALIKE
    for template, *_ in _TABLE:
        shape = template.split(".")
        given, meant = parts, shape
        place = next((place for place, part in enumerate(shape) if part.startswith("{")), None)
        if place is not None:  # agents and models are called anything: they are left out of the comparison
            end = len(parts) - len(shape[place + 1 :])
            given, meant = [*parts[:place], "", *parts[end:]], [*shape[:place], *parts[place:end], *shape[place + 1 :]]
            shape = [*shape[:place], "", *shape[place + 1 :]]
            if place >= end:
                continue
        one, other = ".".join(given).casefold(), ".".join(shape)
        alike = SequenceMatcher(None, one, other).ratio()
        if alike >= likeness and (abs(len(one) - len(other)) <= _SLIP or other.startswith(one)):
            best, likeness = ".".join(meant), alike
    return best


def names_with(label: str, value: str) -> Iterator[tuple[str, Node]]:
    """Yield every dotted name that has ``value`` in the place of ``label``, and its figure."""
    for template, family, labels in _TEMPLATES:
        if f"{{{label}}}" in template:
            yield template.format(**{label: value}), _node(family, labels | {label: value})


def sanitise(name: str) -> str:
    """Return the name as Prometheus takes it: lower case, anything outside ``[a-z0-9_]`` becomes ``_``."""
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
    return f"_{plain}" if plain[:1].isdigit() else plain


_ALIAS_PATTERNS: Final = tuple(
    re.compile(".+".join(sanitise(part) for part in re.split(r"\{\w+\}", template))) for template, *_ in _TEMPLATES
)


def looks_like_alias(sanitised: str) -> bool:
    """Tell whether an alias of some agent or model could have this name."""
    return any(pattern.fullmatch(sanitised) for pattern in _ALIAS_PATTERNS)
