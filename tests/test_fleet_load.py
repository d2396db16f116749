"""The load bed itself: with a few workers for a few seconds it runs to its end, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from backends import binary

BED: Final = Path(__file__).parent / "benchmarks" / "fleet.py"


def test_nothing_is_lost() -> None:
    """Spans, counters, money in Prometheus and Redis, and log lines are all that two workers made."""
    for program in ("prometheus", "redis-server"):
        binary(program)
    command = [
        sys.executable, str(BED), "--workers", "2", "--rate", "8", "--seconds", "4", "--bare", "1", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert ({}, 0) == (found["lost"], done.returncode), done.stderr
    assert [64, 64] == found["equal"]["runs done and asked for"]
    assert [64, 64] == found["equal"]["calls in Prometheus and made"]
    assert found["figures"]["series a worker"] > 0
