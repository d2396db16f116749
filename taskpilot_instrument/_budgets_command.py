"""``taskpilot-instrument budgets``: how every budget of a running page stands, and which is over."""

import json
from argparse import Namespace
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from taskpilot_instrument._commands import BAD, OK, answered, ask, show_table
from taskpilot_instrument._display import UNKNOWN, of, percent, usd

_HEAD: Final = (
    "budget", "account", "state", "used", "spent", "reserved", "limit", "window", "soft mark", "on exceed", "refused",
    "resets",
)  # fmt: skip


def budgets(options: Namespace) -> int:
    """Show how every budget stands, the worst first; the exit status says whether one is spent, or refused calls."""
    told = ask(options.url, "/budgets", options.token)
    found = answered(lambda told: sorted(told, key=lambda one: (not _wrong(one), -one["ratio"])), told, options.url)
    rows, wrong = answered(lambda told: (list(map(_row, told)), list(map(_wrong, told))), found, options.url)
    if options.format == "json":
        print(json.dumps(found, indent=2))
    elif not found:
        print("No budget is set: instrument(budgets=[Budget(…)])")
    else:
        show_table(_HEAD, rows)
        for line in filter(None, wrong):
            print(line)
    return BAD if any(wrong) else OK


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["name"],
        one["account"] or UNKNOWN,
        _state(one),
        percent(100 * one["ratio"]),
        usd(float(one["spent_usd"])),
        usd(float(one["reserved_usd"])),
        f"${Decimal(one['limit_usd']):f}",
        one["window"],
        f"{one['soft_ratio']:.0%}",
        one["on_exceed"],
        f"{one['refused_calls']:,}",
        one["resets_at"] or "never",
    )


def _state(one: Mapping[str, Any]) -> str:
    if one["ratio"] >= 1:
        return "over"
    if one["refused_calls"]:
        return "refusing"
    return "near" if one["ratio"] >= one["soft_ratio"] else "well"


def _wrong(one: Mapping[str, Any]) -> str:
    """Say what is wrong with a budget; nothing where all is well."""
    account = f" ({one['account']})" if one["account"] else ""
    named = f"{one['name']}{account}"
    until = f"until {one['resets_at']}" if one["resets_at"] else "for good: its window never ends"
    within = "in all" if one["window"] == "total" else f"in this {one['window']}"
    refused = f": {of(one['refused_calls'], 'call')} refused {within}" if one["refused_calls"] else ""
    if one["ratio"] < 1:
        return f"{named} refuses calls that may cost more than is left, or have no price{refused}." if refused else ""
    if one["on_exceed"] == "block":
        return f"{named} is over its limit, and refuses calls {until}{refused}."
    return f"{named} is over its limit, and lets calls go on, as on_exceed is {one['on_exceed']}{refused}."
