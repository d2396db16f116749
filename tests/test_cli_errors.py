"""The command line where things are not as they should be: wrong arguments, odd outputs, other servers."""

import errno
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import taskpilot_instrument as tp
from taskpilot_instrument.cli import main
from taskpilot_instrument.embedded import EmbeddedServer
from taskpilot_instrument.testing import capture
from taskpilot_instrument.web import Server, serve

COMMAND = [sys.executable, "-m", "taskpilot_instrument.cli"]


@pytest.fixture
def page() -> Iterator[Server]:
    """A page over one run that failed."""
    budgets = [tp.Budget("a-budget-with-a-long-name", 1)]
    with capture(budgets=budgets, ledger="memory") as captured, serve(0, handle=captured.handle) as server:
        captured.handle.ring()
        with tp.workflow("triage", request_id="req-1") as run:
            run.fail("it said [red]no[/red] and more\x1b]0;mine\x07")
        yield server


@pytest.fixture
def another() -> Iterator[str]:
    """A server that is not ours, and answers everything with JSON of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"status": "fine"}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def ended(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def on_terminal(columns: int, *arguments: str) -> str:
    """Return what a command writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen([*COMMAND, *arguments], stdout=theirs, env={**environ, "TERM": "xterm", "NO_COLOR": "1"})
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 4096):
            written += piece
    except OSError as error:
        if error.errno != errno.EIO:  # what Linux says where the other end is closed
            raise
    finally:
        os.close(ours)
    process.wait(30)
    return written.decode()


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://127.0.0.1:99999", "http://", "ftp://127.0.0.1", "", "http://a:b"]
)
def test_what_is_no_address_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is wrong with an address, the answer is a sentence."""
    for command in ("signals", "runs", "budgets", "models", "experiments"):
        assert 2 == main([command, "--url", url])
        assert f"--url={url}: expected an address such as http://127.0.0.1:8080" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["signals", "runs", "budgets", "models", "experiments"])
@pytest.mark.parametrize("form", ["table", "json"])
def test_another_server_is_told(command: str, form: str, another: str, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON that is not ours is exit status 2 and a sentence."""
    assert 2 == main([command, "--url", another, "--format", form])
    assert "another version" in capsys.readouterr().err


def test_another_place_is_told(page: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A page below a path that is none of ours, a page that is no Prometheus, and a port that is taken are named."""
    assert 2 == main(["signals", "--url", f"{page.url}other"])
    assert f"{page.url}other: not found" in capsys.readouterr().err.lower()
    assert 2 == main(["signals", "--source", page.url.rstrip("/")])
    assert "is a Prometheus there? A page of ours is asked with --url" in capsys.readouterr().err
    port = page.url.rstrip("/").rpartition(":")[2]
    made = ended("demo", "--serve", "--port", port)
    said = f"the page cannot be served on 127.0.0.1:{port} (Address already in use): choose another port (--port), or 0"
    assert (2, "") == (made.returncode, made.stdout)
    assert f"taskpilot-instrument: {said}, which picks a free one\n" == made.stderr


def test_a_server_without_our_paths_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that knows nothing of what is asked is named, with what was asked and what would be right."""
    with EmbeddedServer() as other:
        url = other.url.removesuffix("/v1")
        assert 2 == main(["signals", "--url", url])
    said = f"{url} answered 404 to /signals: is it our page? It prints its address when it starts\n"
    assert f"taskpilot-instrument: {said}" == capsys.readouterr().err


def test_a_price_that_is_known_otherwise_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A tier or provider that has no price is told apart from a model that has none."""
    assert 1 == main(["prices", "gpt-4o-mini", "--tier", "bach"])
    assert "(did you mean 'batch'?); tiers with one: default, batch, priority\n" in capsys.readouterr().out
    assert 1 == main(["prices", "gpt-4o-mini", "--provider", "nobody"])
    assert "no price for --provider nobody; without --provider it has one\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["signals", "runs", "budgets", "models", "prices"])
def test_any_encoding_can_be_written_to(command: str, page: Server) -> None:
    """A terminal that has no dash gets a question mark."""
    arguments = ["my-model"] if command == "prices" else ["--url", page.url]
    made = ended(command, *arguments, PYTHONIOENCODING="ascii")
    assert "Traceback" not in made.stderr
    assert made.returncode == (command in {"prices", "models"})


def test_nobody_reads_on(page: Server) -> None:
    """A reader that left is no verdict: the exit status is the one that a shell has for it."""
    watching = [*COMMAND, "signals", "--url", page.url, "--watch", "1", "--fail-on", "warning", "--workflow", "other"]
    process = subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert 141 == process.wait(30)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_closed_output_is_none(page: Server) -> None:
    """A gate in a job without an output judges all the same; a full disk is a sentence."""
    gate = " ".join([*COMMAND, "signals", "--url", page.url, "--fail-on", "critical"])
    assert 1 == subprocess.run(f"exec {gate} >&-", shell=True, timeout=60, check=False).returncode
    full = subprocess.run(
        f"exec {gate} >/dev/full", shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert 2 == full.returncode
    assert full.stderr.startswith("taskpilot-instrument: [Errno 28]")


def test_a_narrow_terminal_cuts_nothing(page: Server) -> None:
    """What does not fit goes on in the next line, and what stands in brackets is no markup."""
    shown = "".join(on_terminal(40, "budgets", "--url", page.url).split())
    assert "…" not in shown
    assert "why" in on_terminal(200, "runs", "--url", page.url)
    assert "it said [red]no[/red] and more" in on_terminal(200, "runs", "--url", page.url)


@pytest.mark.parametrize("arguments", [[], ["req-1"]])
def test_others_words_do_nothing_to_a_terminal(arguments: list[str], page: Server) -> None:
    """An error's text is shown, and the commands to a terminal in it are not obeyed."""
    for written in (
        on_terminal(200, "runs", *arguments, "--url", page.url),
        ended("runs", *arguments, "--url", page.url).stdout,
    ):
        assert "and more\N{REPLACEMENT CHARACTER}]0;mine\N{REPLACEMENT CHARACTER}" in written
        assert "\x1b]" not in written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "agents.py"], "expected the name of a module, such as agents, not of a file"),
        (["serve", "./src/agents.py"], "such as src.agents"),
        (["serve", "--port", "http"], "expected a port from 1 to 65535, or 0 for a free one, not 'http'"),
        (["demo", "--port", "70000"], "expected a port from 1 to 65535, or 0 for a free one, not '70000'"),
        (["demo", "--serve", "--port", "-1"], "not '-1'"),
        (["demo", "--port", "8081"], "--port is that of the page, which comes with --serve"),
        (["demo", "--serve", "--runs", "3"], "--runs goes without --serve, which runs on and on"),
        (["report", "--output", "/nowhere/at/all.md"], "taskpilot-instrument: "),
    ],
)
def test_wrong_use_is_a_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    """What cannot be done is exit status 2, and says what could."""
    made = ended(*arguments, XDG_STATE_HOME=str(tmp_path), TASKPILOT_LOGS="off")
    assert (2, "") == (made.returncode, made.stdout)
    assert said in made.stderr
    assert "Traceback" not in made.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["demo", "--runs", "1"],
        ["demo", "--serve"],
        ["serve"],
        ["report"],
        ["signals", "--source", "http://127.0.0.1:1"],
    ],
)
def test_a_wrong_variable_is_a_sentence(command: list[str]) -> None:
    """A setting in the environment that cannot be read is told by each command that reads it."""
    made = ended(*command, TASKPILOT_SOURCE_TIMEOUT_S="soon", OPENAI_API_KEY="")
    assert 2 == made.returncode
    assert (
        "taskpilot-instrument: TASKPILOT_SOURCE_TIMEOUT_S='soon': expected a whole number from 1 to 600" in made.stderr
    )
    assert "Traceback" not in made.stderr


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing at all is answered with what there is."""
    assert 2 == main([])
    assert "taskpilot-instrument runs --outcome error" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["demo", "--serve", "--port", "0"]])
def test_a_page_without_its_extra_is_told(command: list[str]) -> None:
    """Where the extra ``web`` is not installed, a sentence names it."""
    program = (
        "import sys\nfor name in ('starlette', 'uvicorn'):\n    sys.modules[name] = None\n"
        f"from taskpilot_instrument.cli import main\nsys.exit(main({command!r}))\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (2, "") == (made.returncode, made.stdout)
    assert "pip install 'taskpilot-instrument[web]'" in made.stderr
    assert "Traceback" not in made.stderr
