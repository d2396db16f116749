"""``taskpilot-instrument report`` as a process of its own."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from backends import RedisServer, free_port
from reported import program

DAY = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite ledger with a run on each of two days."""
    path = str(tmp_path_factory.mktemp("ledger") / "ledger.db")
    with program(DAY, ledger=path) as runs:
        runs.run()
        runs.wait_until(DAY + timedelta(days=1))
        runs.run()
    return path


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("TASKPILOT_")}
    return subprocess.run(
        [sys.executable, "-m", "taskpilot_instrument.cli", "report", *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**plain, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "begins"), [("markdown", "# Daily review: Tue 2026-11-24"), ("html", "<!doctype html>"), ("json", "{\n")]
)
def test_formats(ledger: str, chosen: str, begins: str) -> None:
    """Each format goes to standard output, and nothing but it."""
    made = command("--ledger", ledger, "--end", "2026-11-24", "--format", chosen)
    assert (0, "") == (made.returncode, made.stderr)
    assert made.stdout.startswith(begins)


def test_output(ledger: str, tmp_path: Path) -> None:
    """With ``--output`` it goes to the file, in UTF-8, and nothing is said; one that cannot be written is wrong use."""
    file = tmp_path / "report.json"
    made = command(
        "--end", "2026-11-24", "--format", "json", "--output", str(file), TASKPILOT_LEDGER=ledger, LC_ALL="C"
    )
    assert (0, "", "") == (made.returncode, made.stdout, made.stderr)
    told = json.loads(file.read_text(encoding="utf-8"))
    assert (1, 1) == tuple(told["figures"]["runs"][name] for name in ("value", "before"))
    made = command("--ledger", ledger, "--output", str(tmp_path / "missing" / "report.md"))
    assert 2 == made.returncode
    assert "report.md" in made.stderr


def test_yesterday(ledger: str) -> None:
    """``--end yesterday`` takes all of yesterday, in the time zone."""
    made = command("--ledger", ledger, "--end", "yesterday", "--timezone", "Asia/Tokyo", "--format", "json")
    told = json.loads(made.stdout)
    age = datetime.now(UTC) - datetime.fromisoformat(told["until"])
    assert timedelta() <= age <= timedelta(days=1, minutes=5)
    assert told["is_whole"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--period", "year"], "invalid choice"),
        (["--end", "24.11.2026"], "expected a date such as 2026-10-31"),
        (["--end", "2100-01-01"], "has not begun"),
        (["--timezone", "Mars"], "expected a name such as UTC or Europe/Berlin"),
        (["--prometheus", "http://127.0.0.1:9090"], "not allowed with"),
    ],
)
def test_wrong_use_is_status_2(ledger: str, arguments: list[str], said: str) -> None:
    """A wrong argument is told on standard error, with what would be right."""
    made = command("--ledger", ledger, *arguments)
    assert (2, "") == (made.returncode, made.stdout)
    assert said in made.stderr


def test_no_address_is_status_2() -> None:
    """What is no URL of a Prometheus is wrong use."""
    made = command("--prometheus", "localhost:9090")
    assert (2, "") == (made.returncode, made.stdout)
    assert "expected the URL of a Prometheus" in made.stderr


def test_what_cannot_be_reached_is_status_2(tmp_path: Path) -> None:
    """No ledger, no Redis, no Prometheus, or a file that is something else: one sentence, and status 2."""
    other = tmp_path / "other.db"
    other.write_text("no database " * 100)
    for arguments in (
        ["--ledger", str(tmp_path / "none.db")],
        ["--ledger", str(other)],
        ["--ledger", f"redis://127.0.0.1:{free_port()}/0"],
        ["--prometheus", f"http://127.0.0.1:{free_port()}"],
    ):
        made = command(*arguments)
        assert (2, "") == (made.returncode, made.stdout), made.stderr
        assert 1 == len(made.stderr.splitlines())
    assert not (tmp_path / "none.db").exists()


def test_redis(tmp_path: Path) -> None:
    """A report from the Redis of a fleet."""
    server = RedisServer(tmp_path)
    try:
        with program(DAY, ledger=server.url) as runs:
            runs.run()
        made = command("--ledger", server.url, "--end", "2026-11-23", "--format", "json")
        assert (0, 1) == (made.returncode, json.loads(made.stdout)["figures"]["runs"]["value"])
    finally:
        server.stop()


def test_help_teaches_by_example() -> None:
    """The help shows examples, and says what each exit status means."""
    made = command("--help")
    assert 0 == made.returncode
    for each in (
        "--end yesterday",
        "--format html --output week.html",
        "exit status:",
        "2  an argument is wrong, or the ledger",
    ):
        assert each in made.stdout
