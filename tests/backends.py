"""Start the real Prometheus, Alertmanager and their tools for a test, on free ports of 127.0.0.1."""

import importlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

OBSERVABILITY: Final = Path(__file__).resolve().parent.parent / "observability"
#: Without the folder there is nothing to test: the tests were copied alone.
needs_folder = pytest.mark.skipif(not OBSERVABILITY.exists(), reason="observability/ was not copied along")
#: A proxy of the environment has no business on 127.0.0.1.
_OPENER: Final = build_opener(ProxyHandler({}))
_ATTEMPTS: Final = 3
#: Beneath those that systems give to outgoing connections, which could take one between two looks.
_PORTS: Final = (12_000, 32_000)
_RANDOM: Final = random.SystemRandom()
Found = TypeVar("Found")


def binary(*names: str) -> str:
    """Return the first of these programs that is installed; skip the test, or fail it in CI, where none is."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    message = f"not installed: {' or '.join(names)} (apt-get install prometheus prometheus-alertmanager redis-server)"
    if os.environ.get("TASKPILOT_REQUIRE_BACKENDS") == "1":
        pytest.fail(message)
    pytest.skip(message)


def package(name: str, install: str) -> Any:
    """Return an optional package; skip the tests of the module, or fail them in the CI job that is for it.

    :param install: how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        message = f"not installed: {name} ({install})"
        if name in os.environ.get("TASKPILOT_REQUIRE_PACKAGES", "").split():
            pytest.fail(message)
        pytest.skip(message, allow_module_level=True)


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool or amtool to its end, and return what it said."""
    return subprocess.run([binary(tool), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, and that no connection is given before it is taken."""
    while True:
        port = _RANDOM.randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def get(url: str, **parameters: str) -> Any:
    """Return the JSON that an address answers with.

    :raises AssertionError: where Prometheus or Alertmanager says that it failed.
    """
    query = f"?{urlencode(parameters)}" if parameters else ""
    with _OPENER.open(url + query, timeout=10) as response:
        answer = json.load(response)
    if isinstance(answer, dict) and "status" in answer and "data" in answer:
        assert answer["status"] == "success", answer
        return answer["data"]
    return answer


def wait_for(what: str, look: Callable[[], Found | None], timeout_s: float = 20.0) -> Found:
    """Look again and again until there is something to return.

    :param what: is said to be missing where the time runs out.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {timeout_s:g} s")
        time.sleep(0.05)


class Prometheus:
    """A running Prometheus.

    :param url: its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the samples of an instant query.

        :param at: seconds since 1970; now where it is not given.
        """
        moment = {} if at is None else {"time": f"{at:.3f}"}
        result: list[dict[str, Any]] = get(f"{self.url}/api/v1/query", query=expr, **moment)["result"]
        return result

    def value(self, expr: str) -> float | None:
        """Return the one value of an instant query; None where there is none.

        :raises AssertionError: where there are several.
        """
        result = self.query(expr)
        assert len(result) <= 1, f"{expr} has {len(result)} values"
        return float(result[0]["value"][1]) if result else None

    def alert(self, name: str) -> str | None:
        """Return the state of an alert, ``pending`` or ``firing``; None where it is neither."""
        alerts = get(f"{self.url}/api/v1/alerts")["alerts"]
        return next((alert["state"] for alert in alerts if alert["labels"]["alertname"] == name), None)


@contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """Run a Prometheus until the block is left.

    :param folder: an empty one of its own; rule files that the configuration names are looked for here.
    :param config: its configuration.
    """
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML

    def command(port: int) -> list[str]:
        return [
            binary("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage",
        ]  # fmt: skip

    with _running(command, folder / "prometheus.log") as url:
        yield Prometheus(url)


@contextmanager
def alertmanager(folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """Run an Alertmanager until the block is left, and yield its address.

    :param folder: an empty one of its own.
    :param config: its configuration.
    """
    file = folder / "alertmanager.yml"
    file.write_text(json.dumps(config))

    def command(port: int) -> list[str]:
        return [
            binary("prometheus-alertmanager", "alertmanager"), f"--config.file={file}",
            f"--storage.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ]  # fmt: skip

    with _running(command, folder / "alertmanager.log") as url:
        yield url


@contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """Run a Pushgateway until the block is left, and yield its address.

    :param folder: an empty one of its own.
    """

    def command(port: int) -> list[str]:
        return [
            binary("prometheus-pushgateway", "pushgateway"), f"--web.listen-address=127.0.0.1:{port}",
            "--persistence.file=",  # Debian's has a default: what another one was given would be there again
        ]  # fmt: skip

    with _running(command, folder / "pushgateway.log") as url:
        yield url


@contextmanager
def _running(command: Callable[[int], Sequence[str]], log: Path) -> Iterator[str]:
    """Run a server until the block is left; another port is tried where someone took the first one meanwhile."""
    for _ in range(_ATTEMPTS):
        port = free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(command(port), stdout=output, stderr=output, cwd=log.parent)
        try:
            url = f"http://127.0.0.1:{port}"
            if _is_ready(process, url):
                yield url
                return
        finally:
            process.terminate()
            process.wait(timeout=20)
    pytest.fail(f"does not start: {log.read_text()[-2000:]}")


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with _OPENER.open(f"{url}/-/ready", timeout=5):
                return True
        except (URLError, OSError):
            time.sleep(0.05)
    return False


class RedisServer:
    """A real Redis of a test's own, which can be stopped and started again.

    :param folder: an empty one of its own.
    :param options: as on its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._program = binary("redis-server")
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(_ATTEMPTS):
            self.port = free_port()
            if self.start():
                return
        pytest.fail(f"does not start: {self._program} {' '.join(options)}")

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> bool:
        """Start it, and wait until it answers; what an earlier one kept is there again. Return whether it runs."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        self._process = subprocess.Popen([self._program, *options, *self._options], stdout=subprocess.DEVNULL)
        wait_for("answer of redis-server", lambda: self._ended() or self._answers())
        return not self._ended()

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
