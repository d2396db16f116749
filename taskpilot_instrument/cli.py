"""The command line: ``taskpilot-instrument``."""

import argparse
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Final

from taskpilot_instrument._report import command as report_command
from taskpilot_instrument._version import __version__
from taskpilot_instrument.errors import TaskpilotError
from taskpilot_instrument.semconv import RUN_OUTCOMES

_EXAMPLES: Final = """\
examples:
  taskpilot-instrument demo                     ten runs; an embedded server unless OPENAI_API_KEY is set
  taskpilot-instrument demo --runs 50           as many runs as you like
  taskpilot-instrument demo --embedded          the embedded server whatever is set: no key, no cost
  taskpilot-instrument demo --serve             run on and on, with the live page at http://127.0.0.1:8080
  taskpilot-instrument signals --window 15m     the golden signals of a running page
  taskpilot-instrument signals --fail-on warning    a deploy gate: exit status 1 unless all is well
  taskpilot-instrument signals --source http://prometheus:9090 --window 1h    of all processes that it scrapes
  taskpilot-instrument signals --watch 5        again and again; with --fail-on until a verdict is that bad
  taskpilot-instrument runs --outcome error     the latest runs that failed, each with what went wrong
  taskpilot-instrument runs req-abc-123         one run, span by span
  taskpilot-instrument budgets --format json    how every budget stands
  taskpilot-instrument models --window 1h       what each model did, how fast and at what cost
  taskpilot-instrument models --agent PlannerAgent    the calls of one agent alone
  taskpilot-instrument models --reprice gpt-4.1-mini    what the same traffic would have cost on another model
  taskpilot-instrument experiments              every experiment, and what can be said of it
  taskpilot-instrument experiments planner-prompt     its variants beside each other
  taskpilot-instrument serve my_agents          the page of what a module does
  taskpilot-instrument report --period week     the week so far, beside the one before
  taskpilot-instrument prices gpt-4o-mini       what a model costs
  taskpilot-instrument check                    is everything in place?
  taskpilot-instrument check --prometheus http://127.0.0.1:9090    also rules and scraping
"""
_PORT: Final = 8080
_LAST_PORT: Final = 65_535
_URL: Final = f"http://127.0.0.1:{_PORT}"
#: Of the demo, unless told otherwise.
_RUNS: Final = 10
#: Modules of the commands that have one of their own.
_PLACES: Final = {
    "budgets": "_budgets_command",
    "check": "_check",
    "experiments": "_compared",
    "models": "_compared",
    "report": "_report.command",
    "runs": "_runs_command",
    "signals": "_signals_command",
}
_NO_ANSWER: Final = 2
#: As a shell has it for what a signal ended: 128 and the number of SIGINT, or SIGPIPE.
_INTERRUPTED: Final = 130
_NOBODY_READS: Final = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 well, 1 not well, 2 no answer, 130 interrupted, 141 nobody reads on.

    :param arguments: in place of the process's own.
    """
    _prepare_output()
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return _NO_ANSWER
    options = parser.parse_args(arguments)
    if options.command == "demo":
        _check_demo(parser, options)
    try:
        status = _run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    except (TaskpilotError, OSError) as error:
        print(f"taskpilot-instrument: {error}", file=sys.stderr)
        return _NO_ANSWER
    except KeyboardInterrupt:
        return _INTERRUPTED
    return status


def _prepare_output() -> None:
    """Let no output end a command: neither a terminal without dashes, nor one that is closed."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _run(options: Namespace) -> int:
    # Imported late: `--help` should not wait for the OpenTelemetry SDK.
    if options.command == "demo":
        from taskpilot_instrument._demo import demo

        port = _PORT if options.port is None else options.port
        return demo(options.runs or _RUNS, embedded=options.embedded, serve_port=port if options.serve else None)
    place = import_module(f"taskpilot_instrument.{_PLACES.get(options.command, '_commands')}")
    status: int = getattr(place, options.command)(options)
    return status


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="taskpilot-instrument",
        description="See what an agent workflow does: traces, logs, metrics and golden signals.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    demo = _command(commands, "demo", "run an observed agent workflow, and show its trace, logs and golden signals")
    demo.add_argument("--runs", type=_positive, metavar="N", help=f"workflow runs (default: {_RUNS})")
    demo.add_argument("--embedded", action="store_true", help="never call the real API, even if OPENAI_API_KEY is set")
    demo.add_argument(
        "--serve", action="store_true", help="run on and on, with the live page; never calls the real API"
    )
    demo.add_argument("--port", type=_port, help=f"of the page, with --serve (default: {_PORT}; 0 picks a free one)")

    serve = _command(commands, "serve", "serve the live page and the API of what a module does")
    serve.add_argument("module", nargs="?", help="module to import: it starts the agents")
    serve.add_argument("--port", type=_port, default=_PORT, help="default: %(default)s; 0 picks a free one")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind to; any but this machine's needs --token")
    serve.add_argument("--token", default=os.environ.get("TASKPILOT_WEB_TOKEN"), help="bearer token to ask for")
    serve.add_argument("--source", help="Prometheus whose golden signals are shown, those of all processes")

    signals = _asking(
        commands,
        "signals",
        "show the golden signals of a running page",
        bad="with --fail-on: the verdict is that bad or worse",
        no_answer=", or with --fail-on: nothing ran that could be judged",
    )
    signals.add_argument("--window", help="how far back, such as 15m, 1h or 24h; since the start by default")
    for name in ("workflow", "agent", "model"):
        signals.add_argument(f"--{name}", help=f"only this {name}")
    signals.add_argument("--source", help="a Prometheus to ask in place of a page; its token is TASKPILOT_SOURCE_TOKEN")
    signals.add_argument(
        "--watch", type=_positive, nargs="?", const=5, metavar="S", help="again every S seconds (default: 5)"
    )
    signals.add_argument(
        "--fail-on",
        choices=("critical", "warning"),
        help="a gate: exit with 1 on this verdict or worse, with 2 where nothing ran",
    )
    latest = _asking(commands, "runs", "show the latest runs of a running page, and what went wrong in them")
    latest.add_argument("id", nargs="?", help="request or trace id: that run alone, span by span")
    latest.add_argument("--outcome", choices=RUN_OUTCOMES, help="only those that ended so")
    latest.add_argument("--most", type=_positive, default=20, metavar="N", help="how many (default: %(default)s)")
    _asking(
        commands,
        "budgets",
        "show how every budget of a running page stands",
        bad="a budget is spent, or refused calls in its window",
    )

    models = _asking(commands, "models", "show the models beside each other", bad="no model was called")
    models.add_argument("--window", help="how far back, such as 15m, 1h or 24h; since the start by default")
    models.add_argument("--agent", help="only this agent's calls and runs")
    models.add_argument(
        "--reprice", action="append", default=[], metavar="MODEL",
        help="say also what the same tokens would have cost at this model's prices; may be given again",
    )  # fmt: skip
    bad = "a variant is worse, or an assignment is broken"
    experiments = _asking(commands, "experiments", "show experiments, and what can be said of them", bad=bad)
    experiments.add_argument("name", nargs="?", help="of one experiment; all of them by default")
    experiments.add_argument("--window", help="how far back, such as 1h; figures of a window are not judged")

    report_command.add_report(commands)

    prices = _command(commands, "prices", "show what a model costs", bad="its price is not known")
    prices.add_argument("model", help="such as gpt-4o-mini")
    prices.add_argument("--provider", help="whose price, such as azure")
    prices.add_argument("--tier", help="service tier, such as flex, priority or batch")
    what = "verify the installation: settings, patches, receiver of spans, prices, ledger"
    check = _command(commands, "check", what, bad="a part is wrong")
    check.add_argument("--model", help="whose price has to be known (default: gpt-4o-mini)")
    check.add_argument("--prometheus", metavar="URL", help="whether the rules are loaded there, and targets answer")
    check.add_argument("--format", choices=("table", "json"), default="table", help="default: %(default)s")
    return parser


def _command(commands: Any, name: str, what: str, *, bad: str = "", no_answer: str = "") -> ArgumentParser:
    """Add a command.

    :param bad: when its exit status is 1.
    :param no_answer: when it is 2, beside a wrong argument.
    """
    examples = [line for line in _EXAMPLES.splitlines() if f"{line} ".startswith(f"  taskpilot-instrument {name} ")]
    statuses = {0: "all is well", 1: bad, 2: f"an argument is wrong{no_answer}"}
    told = [f"  {status}  {when}" for status, when in statuses.items() if when]
    made: ArgumentParser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog="\n".join(["examples:", *examples, "", "exit status:", *told]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made


def _asking(commands: Any, name: str, what: str, *, bad: str = "", no_answer: str = "") -> ArgumentParser:
    made = _command(commands, name, what, bad=bad, no_answer=f", or the page does not answer{no_answer}")
    made.add_argument("--url", default=_URL, help="address of the page (default: %(default)s)")
    made.add_argument("--token", default=os.environ.get("TASKPILOT_WEB_TOKEN"), help="its bearer token")
    made.add_argument("--format", choices=("table", "json"), default="table", help="default: %(default)s")
    return made


def _check_demo(parser: ArgumentParser, options: Namespace) -> None:
    """Refuse what the demo would take and not do."""
    if options.serve and options.runs is not None:
        parser.error("demo: --runs goes without --serve, which runs on and on until Ctrl+C")
    if not options.serve and options.port is not None:
        parser.error("demo: --port is that of the page, which comes with --serve")


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to {_LAST_PORT}, or 0 for a free one, not {text!r}")
    return number


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text!r}")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
