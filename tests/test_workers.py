"""Many workers on one machine, with the real gunicorn and uvicorn: whichever answers, it answers for all of them."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from backends import free_port, package, wait_for
from prometheus_client.parser import text_string_to_metric_families as parse
from readme import README, programs

from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply
from taskpilot_instrument.usage import TokenUsage

package("gunicorn", "pip install gunicorn")
TESTS: Final = Path(__file__).parent
_OPENER: Final = build_opener(ProxyHandler({}))
_COST: Final = Decimal("0.0000525")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


class Service:
    """A running service of several workers.

    :param prefix: where the page is mounted.
    """

    def __init__(self, port: int, process: "subprocess.Popen[bytes]", folder: Path, page: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self.folder = folder
        self._page = page
        #: Runs that each worker did.
        self.did: Counter[int] = Counter()
        self.failed = 0

    def get(self, path: str) -> str:
        """Ask whichever worker comes."""
        with _OPENER.open(self.url + path, timeout=20) as response:
            text: str = response.read().decode()
            return text

    def work(self, times: int, fails: int = 0) -> None:
        """Have runs done, by several workers at once."""
        paths = ["/run?fails"] * fails + ["/run"] * (times - fails)
        with ThreadPoolExecutor(6) as pool:
            self.did.update(json.loads(told)["pid"] for told in pool.map(self.get, paths))
        self.failed += fails

    def workers(self, path: str, number: int) -> dict[int, dict[str, Any]]:
        """Ask until so many workers have answered; return what each said."""

        def ask() -> dict[int, dict[str, Any]] | None:
            with ThreadPoolExecutor(number * 2) as pool:
                for told in pool.map(self.get, [path] * number * 2):
                    answer = json.loads(told)
                    told_by[answer["pid"]] = answer
            return told_by if len(told_by) >= number else None

        told_by: dict[int, dict[str, Any]] = {}
        return wait_for(f"answer of {number} workers", ask)

    def scrape(self) -> dict[str, float]:
        """Scrape whichever worker comes; return the sums over all labels."""
        return sums(self.get(f"{self._page}/metrics"))


def sums(text: str) -> dict[str, float]:
    """Return the sum of each sample name."""
    found: dict[str, float] = {}
    for family in parse(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def reply(request: Received) -> Reply:
    """Answer; where a response is asked for, say that it is too much, and the second time that it failed."""
    if request.endpoint != "/responses":
        return Reply("yes", usage=TokenUsage(150, 50))
    if request.headers["x-stainless-retry-count"] == "0":
        return Reply.error(429, headers={"retry-after-ms": "1"})
    return Reply(failure="no", usage=TokenUsage(150, 50))


@contextmanager
def service(folder: Path, command: Callable[[int], list[str]], page: str = "", **settings: str) -> Iterator[Service]:
    """Run a command that serves on a port, with its metrics shared, until the block is left."""
    shared = folder / "metrics"
    shared.mkdir()
    port = free_port()
    with EmbeddedServer(reply) as openai:
        environment = {
            **os.environ, "PROMETHEUS_MULTIPROC_DIR": str(shared), "WORKER_OPENAI": openai.url,
            "WORKER_LEDGER": str(folder / "ledger.db"),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), **settings,
        }  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command(port), env=environment, stdout=log, stderr=log, cwd=folder)
        running = Service(port, process, folder, page)
        try:
            wait_for("service", lambda: answers(running), 60)
            yield running
        except BaseException:
            sys.stderr.write((folder / "log").read_text()[-4000:])
            raise
        finally:
            process.terminate()
            process.wait(30)


def answers(running: Service) -> bool:
    """Tell whether it answers; it must not end."""
    assert running.process.poll() is None, (running.folder / "log").read_text()[-4000:]
    try:
        running.get("/signals")
    except (URLError, OSError):
        return False
    return True


def gunicorn(folder: Path, *options: str) -> Callable[[int], list[str]]:
    """Return how gunicorn is started, with the configuration that the README shows."""
    if not README.exists():
        pytest.skip("the README, which shows the configuration, is not here")
    shown = next(text for text in programs(README.read_text()) if text.startswith("# gunicorn.conf.py"))
    (folder / "gunicorn.conf.py").write_text(shown)
    return lambda port: [
        sys.executable, "-m", "gunicorn", "--workers=3", f"--bind=127.0.0.1:{port}", "--no-control-socket",
        *options, "worker_app:wsgi",
    ]  # fmt: skip


def uvicorn(port: int) -> list[str]:
    """Return how uvicorn is started."""
    return [
        sys.executable, "-m", "uvicorn", "--workers=2", f"--port={port}", "--log-level=warning", "worker_app:asgi",
    ]  # fmt: skip


def check(running: Service, number: int) -> None:
    """Hold what every worker says of all of them, and what is scraped, against what they did."""
    runs = running.did.total()
    good = runs - running.failed
    for window in ("", "?window=5m"):
        for pid, told in running.workers(f"/signals{window}", number).items():
            assert [runs, good, str((runs * _COST).normalize()), runs, runs, 0, runs, runs] == told["sample"], window
            assert 100 * good / runs == told["signals"]["success_rate"]
            assert {"workflow.runs": runs, "llm.cost.total": float(runs * _COST)} == told["names"]
            assert {"gpt-4o-mini": runs} == told["models"]
            assert running.did[pid] == told["recorded"]
    assert len({json.dumps(told["signals"]) for told in running.workers("/signals", number).values()}) == 1
    for _ in range(number * 2):
        found = running.scrape()
        expected = {
            "taskpilot_workflow_runs_total": runs, "taskpilot_llm_calls_total": runs, "workflow_runs": runs,
            "workflow_success": good, "agent_shopagent_latency_ms_count": runs, "mine": runs,
            "llm_quality_user_confirmed_correct": runs, "taskpilot_feedback_total": runs, "shop_visits_total": runs,
            "llm_tokens_total_gpt_4o_mini": 200 * runs,
        }  # fmt: skip
        assert expected == {name: found.get(name) for name in expected}
        assert float(runs * _COST) == pytest.approx(found["llm_cost_total"], rel=1e-12)
        assert float(runs * _COST) == pytest.approx(found["taskpilot_llm_cost_usd_total"], rel=1e-12)


def kill(running: Service) -> int:
    """Kill the worker that did most, at once and without a word; return its id."""
    ((pid, _),) = running.did.most_common(1)
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.parametrize("options", [("--threads=2",), ("--threads=2", "--preload")], ids=["gunicorn", "preloaded"])
def test_gunicorn(options: tuple[str, ...], tmp_path: Path) -> None:
    """Any of three workers tells of all of them, of one that was killed too, and of the one that came in its place."""
    with service(tmp_path, gunicorn(tmp_path, *options)) as running:
        running.work(60, fails=6)
        dead = kill(running)
        running.work(30)
        check(running, 3)
        assert dead not in running.workers("/signals", 3)


def test_waste_of_all_workers(tmp_path: Path) -> None:
    """Any of three workers tells what all have wasted, one that was killed too; and so does the scrape, to the cent."""
    with service(tmp_path, gunicorn(tmp_path, "--threads=2")) as running:
        for calls in (20, 40):
            with ThreadPoolExecutor(6) as pool:
                running.did.update(json.loads(told)["pid"] for told in pool.map(running.get, ["/run?wastes"] * 20))
            kill(running)
            wait_for("another worker", lambda: len(running.workers("/signals", 3)) == 3)
            usd = (calls * _COST).normalize()
            for window in ("", "?window=5m"):
                for told in running.workers(f"/signals{window}", 3).values():
                    (lost,) = told["waste"].values()
                    assert [calls, 200 * calls, usd] == [*lost[:2], Decimal(lost[2]).normalize()]
            found = running.scrape()
            assert (calls, 200 * calls) == (
                found["taskpilot_llm_retries_total"], found["taskpilot_llm_wasted_tokens_total"]
            )  # fmt: skip
            assert float(usd) == pytest.approx(found["taskpilot_llm_wasted_cost_usd_total"], rel=1e-12)
            running.did.clear()


def test_a_kill_in_the_midst_of_requests(tmp_path: Path) -> None:
    """What was answered before a worker was killed under load is counted, and nothing twice."""
    with service(tmp_path, gunicorn(tmp_path, "--threads=2")) as running:

        def one(_: int) -> int | None:
            try:
                pid: int = json.loads(running.get("/run"))["pid"]
            except (OSError, HTTPException):
                return None
            return pid

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(one, number) for number in range(120)]
            first = asked[40].result()
            assert first is not None
            os.kill(first, signal.SIGKILL)
            done = sum(each.result() is not None for each in asked)
        for told in running.workers("/signals", 3).values():
            assert done <= told["sample"][0] <= len(asked)
        assert done <= running.scrape()["workflow_runs"] <= len(asked)
        assert done <= running.scrape()["taskpilot_llm_calls_total"] <= len(asked)


def test_uvicorn(tmp_path: Path) -> None:
    """So it is with uvicorn's workers, which are spawned."""
    with service(tmp_path, uvicorn, "/observe") as running:
        running.work(30, fails=3)
        kill(running)
        wait_for("another worker", lambda: len(running.workers("/signals", 2)) == 2)
        running.work(20)
        check(running, 2)


def test_one_metrics_port_for_all(tmp_path: Path) -> None:
    """The first worker serves ``/metrics`` for all of them; where it is killed, the one in its place does."""
    port = str(free_port())
    with service(tmp_path, gunicorn(tmp_path, "--threads=2"), WORKER_METRICS=port) as running:

        def scraped() -> float:
            with _OPENER.open(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
                return sums(response.read().decode())["workflow_runs"]

        running.work(20)
        (first,) = [pid for pid, told in running.workers("/signals", 3).items() if told["serves"]]
        assert 20 == scraped()
        os.kill(first, signal.SIGKILL)

        def heir() -> list[int]:
            return [pid for pid, told in running.workers("/signals", 3).items() if told["serves"]]

        assert [first] != wait_for("another worker that serves", heir)
        running.work(10)
        assert 30 == scraped()


SERVED_ALREADY = """
import prometheus_client
import taskpilot_instrument as tp
from prometheus_client.multiprocess import MultiProcessCollector

handle = tp.instrument(logs="off")
handle.metrics.increment_counter("orders", 2)
with tp.workflow("triage"):
    pass
registry = prometheus_client.CollectorRegistry()
MultiProcessCollector(registry)
print(prometheus_client.generate_latest(registry).decode())
handle.uninstrument()
again = tp.instrument(logs="off")
with tp.workflow("triage"):
    pass
assert again.golden_signals().runs == 2
"""


def alone(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program by itself."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_an_application_that_serves_its_own(tmp_path: Path) -> None:
    """prometheus_client's own collector has the families and the caller's own; to begin again goes on counting."""
    ended = alone(SERVED_ALREADY, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert 0 == ended.returncode, ended.stderr
    found = sums(ended.stdout)
    assert (1, 2) == (found["taskpilot_workflow_runs_total"], found["orders"])


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    """It is said at the start, not at the first run."""
    ended = alone("import taskpilot_instrument as tp; tp.instrument()", PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "no"))
    assert "ConfigurationError: PROMETHEUS_MULTIPROC_DIR=" in ended.stderr


def test_a_directory_that_is_named_too_late(tmp_path: Path) -> None:
    """Where prometheus_client was imported before, a warning says that nothing is shared."""
    code = f"""
import os, prometheus_client
os.environ["PROMETHEUS_MULTIPROC_DIR"] = {str(tmp_path)!r}
import taskpilot_instrument as tp
print(tp.instrument().metrics.is_shared)
"""
    ended = alone(code)
    assert "False\n" == ended.stdout
    assert "was set after prometheus_client was imported" in ended.stderr
