"""Windows that processes share: what any of them reads is what one process would know that had counted everything."""

import errno
import marshal
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as some

import taskpilot_instrument as tp
from taskpilot_instrument import semconv
from taskpilot_instrument._waste import Lost, Waste
from taskpilot_instrument.semconv import NONE, Kind, Outcome
from taskpilot_instrument.sinks._figures import figures, golden_sample, model_samples, waste_by_agent
from taskpilot_instrument.sinks._names import Node
from taskpilot_instrument.sinks._shelf import Shelf
from taskpilot_instrument.sinks._windows import Bucket, Cell, CellKey, Windows
from taskpilot_instrument.sinks._workers import SharedWindows

START_S = 1_700_000_000.0
AGENTS = some.sampled_from(["PlannerAgent", 'Ågent "quoted"', NONE])
MODELS = some.sampled_from(["gpt-4o", "m:x", "calls."])
MILLISECONDS = some.just(0.0) | some.floats(0.001, 1e6)
MONEY = some.decimals(0, 100, places=9)


class Time:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return int(self.passed_s * 1e9)

    def now_s(self) -> float:
        """Seconds since 1970."""
        return START_S + self.passed_s


def call(draw: some.DrawFn) -> tuple[CellKey, Callable[[Cell], None]]:
    """Draw an LLM call."""
    key = CellKey(Kind.LLM, "triage", draw(AGENTS), draw(MODELS))
    usd, milliseconds, won = draw(MONEY), draw(MILLISECONDS), draw(some.booleans())
    problem, given = draw(some.sampled_from(["APIError", "a:b"])), draw(some.integers(0, 10**9))

    def count(cell: Cell) -> None:
        calls = cell.of_calls()
        cell.runs += 1
        cell.successes += won
        cell.priced += 1
        cell.cost += usd
        cell.input_tokens += given
        cell.latency.add(milliseconds)
        calls.spend(usd, whole=True)
        calls.time(milliseconds / 1e3, 5, given)
        calls.run(usd, won=won)
        if not won:
            calls.fail(problem)
            cell.wasted = cell.wasted.plus(Waste(1, 0, 1, given, usd, 0))

    return key, count


def run(draw: some.DrawFn) -> tuple[CellKey, Callable[[Cell], None]]:
    """Draw a run of a workflow or agent."""
    kind = draw(some.sampled_from([Kind.WORKFLOW, Kind.AGENT]))
    key = CellKey(kind, "triage", NONE if kind is Kind.WORKFLOW else draw(AGENTS), NONE)
    milliseconds, vote = draw(MILLISECONDS), draw(some.sampled_from([1, -1, 0]))
    outcome, lost = draw(some.sampled_from(list(Outcome))), Lost(1, draw(MONEY), draw(some.integers(0, 1)))

    def count(cell: Cell) -> None:
        cell.runs += 1
        cell.checked += 1
        cell.correct += vote
        cell.violations += 1
        if outcome is not Outcome.SUCCESS:
            cell.lose(outcome, lost)
        cell.latency.add(milliseconds)

    return key, count


@some.composite
def event(draw: some.DrawFn) -> tuple[float, int, Any]:
    """Draw how long nothing happens, in which process something does, and what."""
    what = draw(some.sampled_from([call, run]))(draw)
    return draw(some.sampled_from([0.0, 1.0, 4.0, 70.0])), draw(some.integers(0, 2)), what


def answers(buckets: list[Bucket]) -> list[Any]:
    """Return all that is read of buckets, as far as it is exact."""
    known = figures(buckets)
    samples = [
        golden_sample(buckets, workflow, agent, model)._replace(p95_ms=None)
        for workflow, agent, model in [(None, None, None), ("triage", "PlannerAgent", None), (None, None, "m:x")]
    ]
    models = {
        name: (
            found.cell.runs, found.cell.cost, found.calls.problems or {}, found.calls.runs, found.calls.run_cost,
            found.calls.tokens, found.cell.latency.count, dict(found.cell.latency.items()),
        )
        for name, found in sorted(model_samples(buckets, None).items())
    }  # fmt: skip
    recorded = {node: value for node, value in known.recorded.items() if value}
    return [recorded, known.said, samples, waste_by_agent(buckets), models]


def p95(buckets: list[Bucket]) -> float | None:
    """Return the 95th percentile of workflow runs."""
    return golden_sample(buckets, None, None, None).p95_ms


@hypothesis.given(some.lists(event(), max_size=20), some.lists(some.decimals(1, 9, places=6), max_size=4))
def test_many_processes_know_what_one_would(events: list[Any], said: list[Decimal]) -> None:
    """Each of three sees the sums of all, in whatever order and buckets of time they counted."""
    time = Time()
    with TemporaryDirectory() as folder:
        several = [SharedWindows(time.now_ns, Shelf(folder), time.now_s) for _ in range(3)]
        one = Windows(time.now_ns)
        for gap_s, place, (key, count) in events:
            time.passed_s += gap_s
            for windows in (one, several[place]):
                with windows.lock:
                    count(windows.cell(key))
        for place, amount in enumerate(said):
            node = Node(semconv.M_LLM_COST, ("PlannerAgent", None))
            one.say(node, amount)
            several[place % 3].say(node, amount)
        expected = one.select()
        for windows in several:
            assert answers(expected) == answers(windows.select())
            assert one.said() == windows.said()
            assert (p95(windows.select()) or 0) == pytest.approx(p95(expected) or 0, rel=0.017, abs=1e-8)


@hypothesis.given(
    some.lists(some.tuples(some.sampled_from([0.5, 7.0, 61.0, 900.0, 4_000.0]), some.integers(0, 1)), max_size=40),
    some.sampled_from([60, 300, 3_600, 86_400]),
    some.sampled_from([0.0, 30.0, 600.0]),
)
def test_a_window_reaches_back_as_far_as_asked(events: list[tuple[float, int]], window_s: int, idle_s: float) -> None:
    """It holds everything that happened in it, and of what was before no more than a minute or quarter of an hour."""
    time, key = Time(), CellKey(Kind.WORKFLOW, "triage", NONE, NONE)
    with TemporaryDirectory() as folder:
        several = [SharedWindows(time.now_ns, Shelf(folder), time.now_s) for _ in range(2)]
        happened = []
        for gap_s, place in events:
            time.passed_s += gap_s
            with several[place].lock:
                several[place].cell(key).runs += 1
            happened.append(time.passed_s)
        time.passed_s += idle_s
        since = time.passed_s - window_s
        more = 905 if window_s >= 3_600 - 960 else 65
        least = sum(at_s >= since for at_s in happened)
        most = sum(at_s >= since - more for at_s in happened)
        for windows in several:
            found = golden_sample(windows.select(window_s * 10**9), None, None, None).runs
            assert least <= found <= most
        assert len(list(Path(folder).glob("*.note"))) < 200


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """The message says what would be right."""
    with pytest.raises(tp.ConfigurationError, match=r"PROMETHEUS_MULTIPROC_DIR=.*: cannot be written to .*emptied"):
        SharedWindows(Time().now_ns, Shelf(str(tmp_path / "missing")))


def counted(windows: Windows, window_s: int | None = None) -> int:
    """Return the runs of workflows."""
    return golden_sample(windows.select(None if window_s is None else window_s * 10**9), None, None, None).runs


def run_once(windows: Windows) -> None:
    """Count a run."""
    with windows.lock:
        windows.cell(CellKey(Kind.WORKFLOW, "triage", NONE, NONE)).runs += 1


def test_a_child_that_cannot_write_leaves_the_parents_file_alone(tmp_path: Path, swallowing: None) -> None:
    """Where the directory is gone by the time of a fork, the child counts nothing in the parent's name."""
    folder, elsewhere = tmp_path / "metrics", tmp_path / "moved"
    folder.mkdir()
    time = Time()
    windows = SharedWindows(time.now_ns, Shelf(str(folder)), time.now_s)
    run_once(windows)
    folder.rename(elsewhere)
    windows.after_fork()
    run_once(windows)
    assert 1 == counted(SharedWindows(time.now_ns, Shelf(str(elsewhere)), time.now_s))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # prometheus_client lets go of a file that it cannot read
@pytest.mark.parametrize(
    "junk", [b"\xff", b"\xff\xff\xff\x7f" * 4096, b"\x20\0\0\0\0\0\0\0\x04\0\0\0\xff\xff\xff\xff" * 512]
)
def test_a_file_that_is_no_longer_whole(junk: bytes, tmp_path: Path) -> None:
    """Whatever a machine that went down has left under our name, a new process counts, and reads the others."""
    time = Time()
    other = SharedWindows(time.now_ns, Shelf(str(tmp_path)), time.now_s)
    run_once(other)
    shelf = Shelf(str(tmp_path))
    (tmp_path / f"taskpilot_{os.getpid()}_{shelf.number}.cells").write_bytes(junk)
    windows = SharedWindows(time.now_ns, shelf, time.now_s)
    run_once(windows)
    assert [2, 2] == [counted(other), counted(windows)]


@pytest.mark.parametrize("name", ["nonsense", '["cell", "sorcery", "w", "a", "m", "runs"]', '["cell", "llm"]', '["x"]'])
def test_what_another_release_has_written(name: str, tmp_path: Path) -> None:
    """A figure that this release does not know is left out, and nothing else."""
    time, shelf = Time(), Shelf(str(tmp_path))
    windows = SharedWindows(time.now_ns, shelf, time.now_s)
    shelf.put(name, 1.0)
    run_once(windows)
    assert 1 == counted(windows)


@pytest.mark.parametrize("junk", [b"", b"nonsense", marshal.dumps([1])])
def test_a_note_that_cannot_be_read(junk: bytes, tmp_path: Path) -> None:
    """The window then reaches back to the note before, not to the beginning."""
    time = Time()
    windows = SharedWindows(time.now_ns, Shelf(str(tmp_path)), time.now_s)
    for _ in range(6):
        run_once(windows)
        time.passed_s += 61
    newest_in_time = sorted(tmp_path.glob("*.note"))[-3]
    newest_in_time.write_bytes(junk)
    assert 6 == counted(windows)
    assert 4 == counted(windows, 170)


def test_a_disk_without_room_for_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swallowing: None) -> None:
    """It counts all the same."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    time = Time()
    windows = SharedWindows(time.now_ns, Shelf(str(tmp_path)), time.now_s)
    run_once(windows)
    time.passed_s += 70
    run_once(windows)
    assert 2 == counted(windows)
