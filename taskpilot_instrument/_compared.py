"""``taskpilot-instrument models`` and ``experiments``: what a running page says of them."""

import json
from argparse import Namespace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from taskpilot_instrument._commands import BAD, OK, answered, ask, show, show_table
from taskpilot_instrument._display import UNKNOWN

if TYPE_CHECKING:
    from taskpilot_instrument._experiment_report import ExperimentReport

#: Words that are to be seen from afar, where somebody looks.
_STYLES: Final = {
    "bold green": ["better"],
    "bold red": ["worse", "assignment broken", "Assignment broken, do not read on"],
    "yellow": ["trade-off"],
    "dim": ["keep running", "no clear difference", "too few"],
}


def models(options: Namespace) -> int:
    """Show the models beside each other; the exit status says whether any was called."""
    from taskpilot_instrument.comparison import ModelComparison

    reprice = ",".join(options.reprice) or None
    found = ask(options.url, "/models", options.token, window=options.window, agent=options.agent, reprice=reprice)
    comparison = answered(ModelComparison.from_dict, found, options.url)
    if options.format == "json":
        print(json.dumps(found, indent=2))
    else:
        show(comparison, _STYLES)
    return OK if comparison.models else BAD


def experiments(options: Namespace) -> int:
    """Show experiments; the exit status says whether a variant is worse, or an assignment broken."""
    from taskpilot_instrument._effects import Verdict
    from taskpilot_instrument._experiment_report import SHOWN, ExperimentReport

    names = [options.name] if options.name is not None else ask(options.url, "/experiments", options.token)
    answers = [
        ask(options.url, f"/experiments/{quote(name, safe='')}", options.token, window=options.window) for name in names
    ]
    reports = [answered(ExperimentReport.from_dict, answer, options.url) for answer in answers]
    if options.format == "json":
        print(json.dumps(answers if options.name is None else answers[0], indent=2))
    elif options.name is not None:
        show(reports[0], _STYLES)
    elif not reports:
        print("No experiment has had a run yet: experiment(name, variants, unit=…) begins one")
    else:
        head = ("experiment", "variant", *SHOWN, "against the first")
        show_table(head, [line for report in reports for line in _lines(report)])
        print("taskpilot-instrument experiments NAME shows one with its intervals.")
    told = {verdict for report in reports for verdict in report.verdicts.values()}
    return BAD if told & {Verdict.WORSE, Verdict.BROKEN} else OK


def _lines(report: "ExperimentReport") -> list[tuple[str, ...]]:
    """Return a line for each variant: what its runs came to, and what can be said of it, decided or not."""
    return [
        (report.experiment, each.variant, *each.shown(), str(report.verdicts.get(each.variant, UNKNOWN)))
        for each in report.variants
    ]
