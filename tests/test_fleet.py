"""Golden signals of many processes: a real Prometheus, real workers that restart, and what is said where it fails."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from backends import Prometheus, free_port, prometheus, run, wait_for

import taskpilot_instrument as tp
from taskpilot_instrument._display import usd
from taskpilot_instrument._waste import Waste, WasteInMetrics
from taskpilot_instrument.embedded import EmbeddedServer, Received, Reply
from taskpilot_instrument.usage import TokenUsage

WORKER: Final = Path(__file__).with_name("fleet_worker.py")
#: What can be added up over lives, by the filter that it was asked with.
COUNTS: Final = (
    "runs",
    "successes",
    "timed",
    "calls",
    "blocked_calls",
    "unpriced",
    "violations",
    "correct",
    "incorrect",
)


class Worker:
    """One place for a worker: lives that follow one another there.

    :param port: where its metrics are.
    """

    def __init__(self, port: int, url: str) -> None:
        self.port = port
        self._url = url
        self._process: subprocess.Popen[str] | None = None
        #: What each life came to.
        self.lives: list[dict[str, Any]] = []

    def start(self) -> None:
        """Begin a life."""
        command = [sys.executable, str(WORKER), str(self.port), self._url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lives.append({})

    def work(self, runs: int) -> None:
        """Do so many runs, and note what this life has come to."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(runs, file=self._process.stdin, flush=True)
        self.lives[-1] = json.loads(self._process.stdout.readline())

    def is_seen(self, running: Prometheus) -> bool:
        """Tell whether the last scrape has all of this life."""
        found = running.value(f'sum(taskpilot_feedback_total{{instance="127.0.0.1:{self.port}"}})')
        told = self.lives[-1]["samples"]["all"]
        return found == told["correct"] + told["incorrect"]

    def kill(self) -> None:
        """End a life as the kernel does: at once."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=10)
            self._process = None


class Fleet:
    """Four workers, two of which restart: both in their places, one of them once more elsewhere, as containers do."""

    def __init__(self, workers: list[Worker], running: Prometheus) -> None:
        self.workers = workers
        self.running = running

    def live(self) -> None:
        """Let them work, restart and work again."""
        first, second, third, fourth, again = self.workers
        for worker, runs in ((first, 40), (second, 30), (third, 20), (fourth, 10)):
            worker.start()
            worker.work(runs)
        self.restart(first, 8)
        self.restart(second, 30)  # in the end each counter is where it was
        first.work(60)  # beyond what its first life had come to
        third.work(7)
        self.see(second)
        second.kill()
        again.start()
        again.work(50)
        self.see(first, third, fourth, again)
        time.sleep(1.1)  # what is younger than a second is not asked for

    def restart(self, worker: Worker, runs: int) -> None:
        """End a life, and begin another in the same place."""
        self.see(worker)
        worker.kill()
        worker.start()
        worker.work(runs)

    def see(self, *workers: Worker) -> None:
        """Wait until they are scraped."""
        for worker in workers:
            wait_for("scrape", partial(worker.is_seen, self.running))

    def told(self, filtered: str) -> dict[str, Any]:
        """Return the sums over all lives."""
        samples = [life["samples"][filtered] for worker in self.workers for life in worker.lives]
        sums: dict[str, Any] = {
            name: None if any(sample[name] is None for sample in samples) else sum(sample[name] for sample in samples)
            for name in COUNTS
        }
        return {**sums, "spent_usd": sum(Decimal(sample["spent_usd"]) for sample in samples)}

    def wasted(self, filtered: str) -> Waste:
        """Return what was wasted in all lives."""
        whole = Waste()
        for worker in self.workers:
            for life in worker.lives:
                told = Waste(*life["samples"][filtered]["wasted"])
                whole = whole.plus(told._replace(usd=Decimal(told.usd)))
        return whole

    def buckets(self) -> dict[float, float]:
        """Return how many runs took at most so many seconds, over all lives."""
        sums: Counter[float] = Counter()
        for worker in self.workers:
            for life in worker.lives:
                sums.update({float(bound): count for bound, count in life["buckets"].items()})
        return dict(sums)


def reply(request: Received) -> Reply:
    """Answer; where a response is asked for, say that it is too much, and the second time that it failed."""
    if request.endpoint != "/responses":
        return Reply()
    if request.headers["x-stainless-retry-count"] == "0":
        return Reply.error(429, headers={"retry-after-ms": "1"})
    return Reply(failure="no", usage=TokenUsage(150, 50))


@contextmanager
def scraping(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes these often."""
    config = {
        "global": {"scrape_interval": "200ms"},
        "scrape_configs": [{"job_name": "taskpilot", "static_configs": [{"targets": targets}]}],
    }
    with prometheus(folder, config) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers whose lives are over, but for some, and the Prometheus that saw them."""
    with ExitStack() as opened:
        server = opened.enter_context(EmbeddedServer(reply))
        workers = [Worker(free_port(), server.url) for _ in range(5)]
        for worker in workers:
            opened.callback(worker.kill)
        targets = [f"127.0.0.1:{worker.port}" for worker in workers]
        running = opened.enter_context(scraping(tmp_path_factory.mktemp("prometheus"), targets))
        made = Fleet(workers, running)
        made.live()
        yield made


# --- what workers did is what is answered -----------------------------------------------------------


@pytest.mark.parametrize("window", [None, "10m", "24h"])
@pytest.mark.parametrize(
    ("filtered", "unknown"),
    [
        ("all", set()),
        ("agent", {"unpriced"}),
        ("model", {"violations", "correct", "incorrect"}),
        ("workflow", {"calls", "blocked_calls", "spent_usd", "unpriced", "violations", "correct", "incorrect"}),
    ],
)
def test_answer_is_the_sum_of_what_workers_did(
    fleet: Fleet, filtered: str, unknown: set[str], window: str | None
) -> None:
    """Each count, and the money, is exactly that of all lives of all workers; what metrics cannot tell is unknown."""
    asked: dict[str, dict[str, Any]] = {
        "all": {}, "agent": {"agent": "PlannerAgent"}, "model": {"model": "gpt-4o"}, "workflow": {"workflow": "triage"},
    }  # fmt: skip
    found = tp.golden_signals(source=fleet.running.url, window=window, **asked[filtered])
    expected = fleet.told(filtered) | dict.fromkeys(unknown)
    assert expected == {name: getattr(found.sample, name) for name in expected}
    assert found.checked_runs is None


@pytest.mark.parametrize("window", [None, "10m", "24h"])
@pytest.mark.parametrize(("filtered", "unpriced"), [("all", None), ("agent", None), ("model", 0)])
def test_waste_is_the_sum_of_what_workers_wasted(
    fleet: Fleet, filtered: str, unpriced: int | None, window: str | None
) -> None:
    """So is what was wasted; how many calls it was is not known, nor, beside calls without a price, all their cost."""
    asked = {"all": {}, "agent": {"agent": "PlannerAgent"}, "model": {"model": "gpt-4o"}}
    told = fleet.wasted(filtered)
    found = tp.golden_signals(source=fleet.running.url, window=window, **asked[filtered])
    assert told.calls == told.retries > 0
    assert WasteInMetrics(told.attempts, told.retries, told.tokens, told.usd, unpriced) == found.sample.wasted
    assert (float(told.usd), told.tokens, told.retries, told.attempts, None, unpriced) == (
        found.wasted_cost_usd, found.wasted_tokens, found.retries, found.wasted_attempts, found.wasted_calls,
        found.wasted_unpriced_calls,
    )  # fmt: skip
    assert 100 * found.wasted_cost_usd / (found.total_cost_usd or 1) == pytest.approx(found.waste_percent)
    assert f", {'' if unpriced == 0 else '≥ '}{usd(float(told.usd))} wasted, {told.retries:,} retries\n" in str(found)


def test_waste_within_a_workflow_is_not_known(fleet: Fleet) -> None:
    """The families tell no workflow."""
    found = tp.golden_signals(source=fleet.running.url, workflow="triage")
    assert (None, None, None) == (found.wasted_cost_usd, found.retries, found.waste_percent)


def test_latency_is_of_the_bucket_that_it_says(fleet: Fleet) -> None:
    """The p95 of all runs lies between the bounds that come with it, and the text says that these are all there is."""
    found = tp.golden_signals(source=fleet.running.url, window="10m")
    buckets = fleet.buckets()
    low, high = (bound / 1000 for bound in found.sample.p95_bounds_ms or (0, 0))
    assert (buckets.get(low, 0) < 0.95 * buckets[float("inf")] <= buckets[high]) is True
    assert low * 1000 <= (found.p95_latency_ms or 0) <= high * 1000
    assert "timed, between " in str(found)


def test_signals_are_those_of_the_definitions(fleet: Fleet) -> None:
    """From the counts each signal is computed as everywhere; where a call has no price, the cost is a lower bound."""
    found = tp.golden_signals(source=fleet.running.url)
    told = fleet.told("all")
    assert 100 * told["successes"] / told["runs"] == found.success_rate
    assert float(told["spent_usd"]) / told["successes"] == found.cost_per_successful_task_usd
    assert 100 * told["correct"] / (told["correct"] + told["incorrect"]) == found.user_confirmed_correctness_percent
    assert 100 * told["violations"] / told["runs"] == found.policy_violation_rate_percent
    assert None is found.cost_coverage
    assert f"by {fleet.running.url}: " in str(found)
    assert "≥ $" in str(found)


def test_only_what_is_asked_for(fleet: Fleet) -> None:
    """The query of the address chooses a service; of one that is not there nothing is known."""
    told = fleet.told("all")
    assert told["runs"] == tp.golden_signals(source=f"{fleet.running.url}/?job=taskpilot").runs
    nobody = tp.golden_signals(source=f"{fleet.running.url}?job=another", window="1h")
    assert (0, None, None) == (nobody.runs, nobody.total_cost_usd, nobody.violations)
    assert (None, None) == (nobody.wasted_cost_usd, nobody.retries)
    assert {None} == set(nobody.values.values())
    assert None is nobody.as_dict()["cost_per_successful_task_usd"]


# --- any life of any counter --------------------------------------------------------------------------


SCRAPE_S: Final = 15
HOURS: Final = 3


class Seen(NamedTuple):
    """One scrape of a counter.

    :param began: when the process began that told it.
    """

    at: int
    value: int
    began: int


def stories(chance: random.Random, now: int) -> dict[str, list[Seen]]:
    """Return the scrapes of targets that are born, restart, are not reached for a while, and die.

    Where the process tells when it began, a counter may be back at once at what it was, or beyond.
    """
    found = {}
    for number in range(40):
        born, died = sorted(chance.sample(range(HOURS * 3600), 2)) if number % 2 else (0, HOURS * 3600)
        value, began, seen = 0, born, []
        away = range(0)
        for second in range(born, died, SCRAPE_S):
            if chance.random() < 0.01 and number % 4 < 2:
                value, began = chance.choice((0, value, value + 1)) if tells_its_start(number) else 0, second
            elif chance.random() < 0.3:
                value += chance.randint(1, 5)
            if chance.random() < 0.01:
                away = range(second, second + chance.randint(1, 40) * SCRAPE_S)
            if second not in away:
                start = now - HOURS * 3600
                seen.append(Seen(start + second, value, start + began))
        found[f"10.0.0.{number}:9464"] = seen
    return found


def tells_its_start(number: int) -> bool:
    """Tell whether a target has a metric for it; of the others it is known by counters that fell."""
    return number % 4 == 0


def seen_within(scrapes: list[Seen], since: int) -> int:
    """Return what was counted after a moment: of each life the last that was seen, less the last seen before."""
    first, last = {each.began: 0 for each in scrapes}, {each.began: 0 for each in scrapes}
    for each in scrapes:
        last[each.began] = each.value
        if each.at <= since:
            first[each.began] = each.value
    return sum(last.values()) - sum(first.values())


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_any_history_is_counted_exactly(seed: int, tmp_path: Path) -> None:
    """Over any window, what targets that came, went, restarted and were not reached did is counted to the unit."""
    now = int(time.time())
    told = stories(random.Random(seed), now)
    lines = ["# TYPE taskpilot_workflow_runs counter"]
    for target, scrapes in told.items():
        labels = f'{{job="taskpilot",instance="{target}",workflow="w",outcome="success"}}'
        lines += [f"taskpilot_workflow_runs_total{labels} {each.value} {each.at}" for each in scrapes]
    for place, name in ((0, "process_start_time_seconds"), (4, "taskpilot_workflow_runs_created")):
        lines.append(f"# TYPE {name} gauge")
        for target, scrapes in list(told.items())[place::8]:
            labels = f'{{job="taskpilot",instance="{target}"}}'
            lines += [f"{name}{labels} {each.began} {each.at}" for each in scrapes]
    (tmp_path / "history.txt").write_text("\n".join([*lines, "# EOF", ""]))
    made = run("promtool", "tsdb", "create-blocks-from", "openmetrics", tmp_path / "history.txt", tmp_path / "data")
    assert 0 == made.returncode, made.stderr
    with scraping(tmp_path, []) as running:
        for window, seconds in (("90s", 90), ("15m", 900), ("1h", 3600), ("110m", 6600), (None, 24 * 3600)):
            found = tp.golden_signals(source=running.url, window=window)
            # Prometheus chose the moment: it may be any of these.
            moments = range(now - 2, int(time.time()) + 1)
            expected = [sum(seen_within(scrapes, moment - seconds) for scrapes in told.values()) for moment in moments]
            assert found.runs in expected, (window, expected)
            assert found.runs > 0
