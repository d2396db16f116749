"""Time buckets and sketches: what happened when, within 1 %, in bounded memory."""

import tracemalloc
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from metrics_records import SECOND, ManualClock

from taskpilot_instrument import _guard
from taskpilot_instrument.semconv import NONE, Kind
from taskpilot_instrument.sinks._names import STATIC
from taskpilot_instrument.sinks._sketch import Sketch, merged
from taskpilot_instrument.sinks._windows import TIERS, CellKey, TierSpec, Windows

HOUR = 3600
KEY = CellKey(Kind.WORKFLOW, "triage", NONE, NONE)


def count(windows: Windows, seconds: float | None = None, key: CellKey = KEY) -> int:
    """Return the runs of one key within a window."""
    buckets = windows.select(None if seconds is None else int(seconds * SECOND))
    return sum(bucket.cells[key].runs for bucket in buckets if key in bucket.cells)


def run(windows: Windows, key: CellKey = KEY, ms: float = 100.0) -> None:
    """Record one run."""
    with windows.lock:
        cell = windows.cell(key)
        cell.runs += 1
        cell.latency.add(ms)


# --- windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [60, 90, 900, HOUR, 6 * HOUR, 24 * HOUR])
def test_a_run_leaves_the_window_when_its_time_is_over(seconds: int) -> None:
    """It is seen as long as the window reaches it, and gone at most one minute after (five seconds within the hour)."""
    clock = ManualClock(now_ns=7 * SECOND)
    windows = Windows(clock.clock.monotonic_ns)
    run(windows)
    clock.advance(seconds - 1)
    assert 1 == count(windows, seconds)
    clock.advance(6 if seconds <= HOUR else 61)
    assert 0 == count(windows, seconds)
    assert 1 == count(windows)


def test_a_quiet_process_still_answers() -> None:
    """Long after the last write, old buckets are found in the tier that keeps them."""
    clock = ManualClock()
    windows = Windows(clock.clock.monotonic_ns)
    run(windows)
    clock.advance(23 * HOUR)
    assert [0, 1] == [count(windows, HOUR), count(windows, 24 * HOUR)]


# --- what waits to be counted -----------------------------------------------------------------------


def wait(windows: Windows, key: CellKey = KEY) -> None:
    """Have one run counted some time."""

    def count_one(key: CellKey) -> None:
        windows.open_cell(key).runs += 1

    windows.wait(count_one, key)


def test_what_waits_is_counted_before_anybody_reads() -> None:
    """A reader sees what was told until then, whichever way it reads."""
    windows = Windows(ManualClock().clock.monotonic_ns)
    wait(windows)
    assert [1, 1] == [count(windows), count(windows, 60)]
    wait(windows)
    stretches = windows.stretches(60 * SECOND, 0)
    assert 2 == sum(bucket.cells[KEY].runs for bucket in stretches[0] if KEY in bucket.cells)


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=150))
def test_waiting_changes_no_answer(steps: list[tuple[int, bool]]) -> None:
    """Each run counts in the bucket of its own time, also where that is over by the time it is counted."""
    clock = ManualClock()
    windows, at_once = Windows(clock.clock.monotonic_ns), Windows(clock.clock.monotonic_ns)
    for seconds, other in steps:
        clock.advance(seconds)
        key = KEY._replace(workflow="other") if other else KEY
        wait(windows, key)
        run(at_once, key)
    for seconds in (5, 20, 60, HOUR):
        assert count(at_once, seconds) == count(windows, seconds)
    assert [list(bucket.cells) for bucket in at_once.select()] == [list(bucket.cells) for bucket in windows.select()]


@pytest.mark.usefixtures("swallowing")
def test_what_cannot_be_counted_keeps_nothing_else_from_it() -> None:
    """An error in counting is swallowed as any of our own, and what waits beside it is counted."""
    windows = Windows(ManualClock().clock.monotonic_ns)

    def fail(_: object) -> None:
        raise ZeroDivisionError

    wait(windows)
    windows.wait(fail, None)
    wait(windows)
    assert 2 == count(windows)
    assert {"metric": 1} == _guard.swallowed()


# --- tiers ------------------------------------------------------------------------------------------

#: Tiers so small that they overflow at once; the last one keeps everything that these tests write.
TINY = (
    TierSpec(5 * SECOND, 4, 64, 2_500),
    TierSpec(15 * SECOND, 5, 64, 4_000),
    TierSpec(60 * SECOND, 10_000, 64, 10**9),
)
TIGHT_MIDDLE = (TierSpec(5 * SECOND, 50, 64, 10**9), TierSpec(15 * SECOND, 2, 64, 1), TINY[2])
gaps = st.lists(st.one_of(st.integers(0, 8), st.integers(0, 90)), min_size=1, max_size=60)


@given(gaps, st.integers(1, 600), st.sampled_from([TINY, TIGHT_MIDDLE]), st.booleans())
@example([0, 60, 0], 60, TIGHT_MIDDLE, True)
def test_no_run_is_read_twice_or_missed(steps: list[int], seconds: int, tiers: Sequence[TierSpec], peek: bool) -> None:
    """Whatever the tiers have dropped, a window holds each of its runs once and reaches back a bucket more at most."""
    clock = ManualClock()
    windows = Windows(clock.clock.monotonic_ns, tuple(tiers))
    times: list[int] = []
    for step in steps:
        clock.advance(step)
        run(windows)
        times.append(clock.now_ns)
        if peek:
            windows.select(SECOND)
    start = clock.now_ns - seconds * SECOND
    exact = sum(time >= start for time in times)
    widest = sum(time >= start - tiers[-1].width_ns for time in times)
    assert exact <= count(windows, seconds) <= widest
    assert len(times) == count(windows)


@given(gaps, st.sampled_from([60, 90, 300, HOUR]))
def test_windows_within_the_hour_are_five_seconds_fine(steps: list[int], seconds: int) -> None:
    """With the real tiers, a window within the last hour is wrong by less than five seconds."""
    clock = ManualClock()
    windows = Windows(clock.clock.monotonic_ns)
    times: list[int] = []
    for step in steps:
        clock.advance(step)
        run(windows)
        times.append(clock.now_ns)
    start = clock.now_ns - seconds * SECOND
    exact = sum(time >= start for time in times)
    assert exact <= count(windows, seconds) <= sum(time > start - 5 * SECOND for time in times)


def test_direct_writes_age_too() -> None:
    """What was written by name falls out of a window like anything else, and stays in the all-time sum."""
    clock = ManualClock()
    windows = Windows(clock.clock.monotonic_ns)
    node = STATIC["llm.cost.total"]
    with windows.lock:
        windows.bucket().say(node, Decimal("0.1"))
    clock.advance(2 * HOUR)
    with windows.lock:
        windows.bucket().say(node, Decimal("0.2"))
    recent = [bucket.said[node] for bucket in windows.select(HOUR * SECOND) if node in bucket.said]
    assert [Decimal("0.2")] == recent
    assert Decimal("0.3") == windows.said()[node]


def test_further_keys_share_a_cell() -> None:
    """Beyond the bound of a bucket, keys of a kind count together, so sums hold."""
    clock = ManualClock()
    windows = Windows(clock.clock.monotonic_ns, (TierSpec(5 * SECOND, 10, 3, 10**6), *TINY[1:]))
    for number in range(10):
        run(windows, CellKey(Kind.AGENT, "w", f"agent-{number}", NONE))
    cells = windows.select(60 * SECOND)[0].cells
    assert 4 == len(cells)
    assert 10 == sum(cell.runs for cell in cells.values())


def test_memory_has_a_ceiling() -> None:
    """A day of load too varied to keep in full stays within the budgets, and no run of the all-time sum is lost."""
    clock = ManualClock()
    tiers = tuple(spec._replace(budget=spec.budget // 20) for spec in TIERS)
    budget = sum(spec.budget for spec in tiers)
    windows = Windows(clock.clock.monotonic_ns, tiers)
    keys = [CellKey(Kind.LLM, f"w{number % 5}", f"a{number % 7}", f"m{number % 3}") for number in range(40)]
    tracemalloc.start()
    before, sizes, written = tracemalloc.get_traced_memory()[0], [], 0
    for step in range(26 * 60):
        clock.advance(60)
        for number, key in enumerate(keys[: 10 if step % 9 else 40]):
            run(windows, key, ms=1.5 ** ((step * 7 + number) % 37))
            written += 1
        sizes.append(windows.size)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert max(sizes) <= budget
    assert used < 1.5 * budget
    assert written == sum(count(windows, key=key) for key in keys)


# --- sketches ---------------------------------------------------------------------------------------

milliseconds = st.one_of(
    st.floats(1, 3_600_000),
    st.floats(0, 22).map(lambda power: 2.0**power),
    st.sampled_from([1.0, 5.0, 2_000.0, 3_600_000.0]),
)


def exact_quantile(values: list[float], percent: int) -> float:
    """Return the value at the nearest rank."""
    return sorted(values)[-(-percent * len(values) // 100) - 1]


@given(st.lists(milliseconds, min_size=1, max_size=300), st.sampled_from([1, 50, 90, 95, 99, 100]))
def test_quantiles_are_within_one_percent(values: list[float], percent: int) -> None:
    """For any distribution from 1 ms to 1 h, a quantile is within 1 % of the exact one."""
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    assert exact_quantile(values, percent) == pytest.approx(sketch.quantile(percent), rel=0.01)
    assert (len(values), min(values), max(values)) == (sketch.count, sketch.low, sketch.high)


@given(st.lists(st.lists(milliseconds, max_size=50), min_size=1, max_size=6), st.booleans())
def test_merging_equals_counting_together(parts: list[list[float]], packed: bool) -> None:
    """Sketches of parts, packed or not, merge into the sketch of the whole."""
    whole, sketches = Sketch(), []
    for part in parts:
        sketch = Sketch()
        for value in part:
            sketch.add(value)
            whole.add(value)
        if packed:
            sketch.pack()
        sketches.append(sketch)
    together = merged(sketches)
    assert [whole.quantile(p) for p in (1, 50, 95, 99)] == [together.quantile(p) for p in (1, 50, 95, 99)]
    assert (whole.count, len(whole)) == (together.count, len(together))
    assert whole.total == pytest.approx(together.total)


def test_zero_is_a_value() -> None:
    """What took no time at all is counted like anything else."""
    sketch = Sketch()
    for value in (0.0, 0.0, 8.0):
        sketch.add(value)
    assert (0.0, 8.0) == (pytest.approx(sketch.quantile(50), abs=1e-6), sketch.quantile(95))


def test_a_sketch_of_nothing_has_no_quantile() -> None:
    """Unknown is unknown."""
    assert Sketch().quantile(95) is None
