"""Load a fleet and say whether anything is lost: real HTTP to a model, OTLP, Prometheus, budgets in Redis.

    python tests/benchmarks/fleet.py [--workers 4] [--rate 15] [--seconds 40] [--bare 8] [--targets 0] [--json]

Each run is a workflow, an agent, a model call over a socket and a tool call: four spans, one call. The exit status
is 1 where anything was lost: spans received against operations, counters in Prometheus against runs, spend in
Redis against the sum of costs, log lines against calls. Then come the figures: what one call costs in bytes and CPU,
what one worker is to Prometheus, and what follows for a thousand workers and 10⁸ calls a day. With ``--targets 1000``
a Prometheus of its own also scrapes what one worker serves from so many targets every 15 seconds for two minutes.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends import Prometheus, RedisServer, free_port, prometheus
from fleet_sizing import crowd, disk_bytes_a_sample, reckon
from otlp_receiver import HttpReceiver, ReceivedExport
from prometheus_client import CollectorRegistry

import taskpilot_instrument as tp
from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply
from taskpilot_instrument.usage import TokenUsage

WORKER: Final = Path(__file__).with_name("fleet_bed_worker.py")
SPANS_A_RUN: Final = 4
#: One call in so many is refused; its run then calls no tool.
REFUSED: Final = 50
_CREATED: Final = re.compile(rb"^(?!#)\w+_created[{ ]", re.MULTILINE)


def answer(request: Received) -> Reply:
    """Answer like a model, and refuse now and then."""
    if request.number % REFUSED == 0:
        return Reply.error(400, "No such thing.")
    return Reply("Collect the merged changes", usage=TokenUsage(150, 50))


class Counted(list[ReceivedExport]):
    """Exports that are counted and let go, so that the bed itself does not grow."""

    def __init__(self) -> None:
        super().__init__()
        self.spans = self.bytes = self.gzipped = 0
        self._lock = threading.Lock()

    def append(self, export: ReceivedExport, /) -> None:
        """Count one."""
        spans = sum(len(scope.spans) for resource in export.body.resource_spans for scope in resource.scope_spans)
        packed = gzip.compress(export.body.SerializeToString())
        with self._lock:
            self.spans += spans
            self.bytes += export.body.ByteSize()
            self.gzipped += len(packed)


class Worker:
    """A worker process, what it says, and how much memory it takes.

    :param given: what it is to do.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.said: list[dict[str, Any]] = []
        #: Seconds and KiB since it was observed.
        self.memory: list[tuple[float, int]] = []
        command = [sys.executable, str(WORKER), json.dumps(given)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(json.loads(line))

    def look(self) -> None:
        """Note its memory, while it works observed."""
        if len(self.said) == 1:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
            size = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
            self.memory.append((time.monotonic(), int(size.split()[1])))

    @property
    def has_ended(self) -> bool:
        """True once it told what it came to.

        :raises AssertionError: where it broke.
        """
        if len(self.said) < 2:
            assert self._process.poll() is None, "a worker broke: see above"
            return False
        return True

    def end(self) -> None:
        """Let it go."""
        try:
            self._process.communicate(timeout=20)
        finally:
            self._process.kill()

    def growth_kib_a_minute(self, quarter: int) -> float:
        """Return the slope of its memory by least squares.

        :param quarter: 0 to 3, of the time that it was observed.
        """
        size = len(self.memory) // 4
        points = self.memory[quarter * size : (quarter + 1) * size]
        if len(points) < 3:
            return 0.0
        middle_x = sum(x for x, _ in points) / len(points)
        middle_y = sum(y for _, y in points) / len(points)
        below = sum((x - middle_x) ** 2 for x, _ in points)
        return 60 * sum((x - middle_x) * (y - middle_y) for x, y in points) / below


class Outcome(NamedTuple):
    """What the bed found: pairs that must be equal, and figures."""

    equal: dict[str, tuple[Any, Any]]
    figures: dict[str, float]
    body: bytes
    #: What workers say of themselves that are not well.
    unwell: list[str]

    @property
    def lost(self) -> dict[str, tuple[Any, Any]]:
        """The pairs that are not."""
        return {name: pair for name, pair in self.equal.items() if pair[0] != pair[1]}


def load(folder: Path, workers: int, rate: float, seconds: float, bare_s: float) -> Outcome:
    """Run the bed once."""
    with ExitStack() as opened:
        server = opened.enter_context(EmbeddedServer(answer, keep=10))
        receiver = HttpReceiver()
        receiver.exports = exports = Counted()
        opened.enter_context(receiver)
        for name in ("redis", "prometheus", "logs"):
            (folder / name).mkdir()
        redis = RedisServer(folder / "redis")
        opened.callback(redis.stop)
        ports = [free_port() for _ in range(workers)]
        running = opened.enter_context(prometheus(folder / "prometheus", scraping(ports)))
        made = []
        for port in ports:
            made.append(Worker({
                "port": port, "openai": server.url, "otlp": f"{receiver.origin}/v1/traces", "redis": redis.url,
                "logs": str(folder / "logs" / f"{port}.jsonl"), "rate": rate, "seconds": seconds, "bare_s": bare_s,
            }))  # fmt: skip
            opened.callback(made[-1].end)
        while not all(worker.has_ended for worker in made):
            for worker in made:
                worker.look()
            time.sleep(0.25)
        return weigh(made, exports, running, redis.url, folder / "logs")


def scraping(ports: list[int]) -> dict[str, Any]:
    """Return a configuration for these workers, and for Prometheus itself."""
    return {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "fleet", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        ],
    }


def weigh(workers: list[Worker], exports: Counted, running: Prometheus, redis: str, logs: Path) -> Outcome:
    """Compare what workers say with what arrived, and work the figures out."""
    told = [worker.said[1] for worker in workers]
    runs, calls = (sum(one[name] for one in told) for name in ("runs", "calls"))
    successes = sum(one["successes"] for one in told)
    spent = sum((Decimal(one["spent"]) for one in told), Decimal(0))

    def signals() -> tp.GoldenSignals:
        return tp.golden_signals(source=f"{running.url}?job=fleet", window="1h")

    # Each worker waits to be scraped; where something is lost, that is seen below.
    deadline = time.monotonic() + 15
    while signals().sample.runs != runs and time.monotonic() < deadline:
        time.sleep(0.2)
    asked = signals().sample
    log = b"".join(file.read_bytes() for file in sorted(logs.iterdir()))
    equal = {
        "runs done and asked for": (len(told) * round(workers[0].given["rate"] * workers[0].given["seconds"]), runs),
        "spans received and operations": (exports.spans, SPANS_A_RUN * runs - (runs - successes)),
        "runs in Prometheus and done": (asked.runs, runs),
        "successes in Prometheus and done": (asked.successes, successes),
        "calls in Prometheus and made": (asked.calls, calls),
        "USD in Prometheus and spent": (asked.spent_usd, spent),
        "USD in Redis and spent": (spent_in(redis), spent),
        "log lines and calls": (log.count(b'"llm.called"') + log.count(b'"llm.failed"'), calls),
        "workers that sent all spans": (sum(one["flushed"] and not one["dropped"] for one in told), len(told)),
    }
    with urlopen(f"http://127.0.0.1:{workers[0].given['port']}/metrics", timeout=10) as response:
        body = response.read()
    unwell = [one["health"] for one in told if not one["ok"]]
    return Outcome(equal, figures(workers, told, exports, running, log, body), body, unwell)


def spent_in(redis: str) -> Decimal:
    """Return what Redis has as spent, all workers together."""
    settings = {"ledger": redis, "logs": "off", "registry": CollectorRegistry(), "patch_openai": False}
    with tp.instrument(budgets=[tp.Budget("fleet", 1_000_000, window="total")], **settings) as handle:
        (status,) = handle.budgets()
        assert status.reserved_usd == 0, f"{status.reserved_usd} USD are still reserved"
        return status.spent_usd


def figures(
    workers: list[Worker], told: list[dict[str, Any]], exports: Counted, running: Prometheus, log: bytes,
    body: bytes,
) -> dict[str, float]:  # fmt: skip
    """Return what one call and one worker come to."""
    calls = sum(one["calls"] for one in told)

    def mean(stretch: str, of: str) -> float:
        return sum(one[stretch][of] / (one[stretch]["runs"] if of == "cpu_s" else 1) for one in told) / len(told)

    def average(metric: str) -> float:
        return running.value(f'avg(max_over_time({metric}{{job="fleet"}}[5s]))') or 0.0

    return {
        "calls": calls,
        "spans a call": exports.spans / calls,
        "span bytes a call": exports.bytes / calls,
        "span bytes a call, gzipped": exports.gzipped / calls,
        "log bytes a call": len(log) / calls,
        "log lines a call": log.count(b"\n") / calls,
        "log bytes a call, gzipped": len(gzip.compress(log)) / calls,
        "CPU ms a run, bare": 1000 * mean("bare", "cpu_s"),
        "CPU ms a run, observed": 1000 * mean("observed", "cpu_s"),
        "CPU ms added a run": 1000 * (mean("observed", "cpu_s") - mean("bare", "cpu_s")),
        "median call ms, bare": 1000 * mean("bare", "median_s"),
        "median call ms, observed": 1000 * mean("observed", "median_s"),
        "ms added to a call": 1000 * (mean("observed", "median_s") - mean("bare", "median_s")),
        "seconds behind the rate": max(one["observed"]["late_s"] for one in told),
        "series a worker": average("scrape_samples_scraped"),
        "of these, when they were created": len(_CREATED.findall(body)),
        "scrape bytes": len(body),
        "scrape bytes, gzipped": len(gzip.compress(body)),
        "scrape ms": 1000 * average("scrape_duration_seconds"),
        "worker MiB": sum(worker.memory[-1][1] for worker in workers) / len(workers) / 1024,
        **{
            f"its growth, KiB a minute, quarter {quarter + 1}": sum(
                each.growth_kib_a_minute(quarter) for each in workers
            )
            / len(workers)
            for quarter in range(4)
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the bed, print what it found, and return whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="processes (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=15, help="runs a second and worker (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=40, help="of observed work (default: %(default)s)")
    parser.add_argument(
        "--bare", type=float, default=8, help="seconds of unobserved work before (default: %(default)s)"
    )
    parser.add_argument("--targets", type=int, default=0, help="also let a Prometheus scrape so many workers")
    parser.add_argument("--json", action="store_true", help="print JSON, and no reckoning")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found = load(folder, given.workers, given.rate, given.seconds, given.bare)
        if given.json:
            print(json.dumps({"lost": found.lost, "equal": found.equal, "figures": found.figures}, default=str))
            return int(bool(found.lost))
        show(found)
        disk = disk_bytes_a_sample(folder / "block", found.body)
        massed = crowd(folder / "crowd", found.body, given.targets) if given.targets else None
    print("\nwhat follows for 1,000 workers and 10⁸ calls a day")
    for what, amount, how in reckon(found.figures, disk, massed):
        print(f"  {what:<44} {amount:>14}   {how}")
    return int(bool(found.lost))


def show(found: Outcome) -> None:
    """Print what was compared, and the figures."""
    for name, (arrived, done) in found.equal.items():
        print(f"{'ok  ' if arrived == done else 'LOST'}  {name:<32} {arrived} and {done}")
    for text in found.unwell:
        print(text)
    print()
    for name, figure in found.figures.items():
        print(f"  {name:<38} {figure:>12,.2f}")


if __name__ == "__main__":
    sys.exit(main())
