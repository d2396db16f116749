"""The command line: ``taskpilot-instrument``."""

import argparse
import os
import sys
from collections.abc import Sequence

from taskpilot_instrument._version import __version__

_EXAMPLES = """\
examples:
  taskpilot-instrument demo               ten runs; against an embedded server unless OPENAI_API_KEY is set
  taskpilot-instrument demo --runs 50     as many runs as you like
  taskpilot-instrument demo --embedded    against the embedded server whatever is set: no key, no cost
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    :param arguments: in place of the process's own.
    """
    options = _parser().parse_args(arguments)
    # Imported late: `--help` should not wait for the OpenTelemetry SDK.
    from taskpilot_instrument._demo import demo

    try:
        return demo(options.runs, embedded=options.embedded)
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="taskpilot-instrument",
        description="See what an agent workflow does: traces, logs, metrics and golden signals.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="run an observed agent workflow, and show its trace, logs and golden signals",
        description="Run Planner → Reviewer → Executor through the openai client, observed end to end.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--runs", type=_positive, default=10, metavar="N", help="workflow runs (default: %(default)s)")
    demo.add_argument("--embedded", action="store_true", help="never call the real API, even if OPENAI_API_KEY is set")
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text!r}")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
