"""The examples run as their first lines say, offline, and show what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="examples/ was not copied along")


def run(name: str) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60, check=True
    )


def test_budgets() -> None:
    """One user is refused before the request is sent, and the other goes on; the log says why."""
    done = run("budgets.py")
    assert "ann: budget 'per-user' refused the call" in done.stdout
    assert "bob: all 3 plans made" in done.stdout
    assert '"event_name":"budget.blocked"' in done.stderr.replace(": ", ":").replace('" :', '":')
