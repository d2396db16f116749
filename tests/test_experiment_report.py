"""What is said of an experiment: rarely wrong however often one looks, and soon where there is something to say."""

import json
import logging
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics_records import workflow_run

import taskpilot_instrument as tp
from taskpilot_instrument import _effects
from taskpilot_instrument._assignment import Assigned, assign, design_of
from taskpilot_instrument._effects import Verdict
from taskpilot_instrument._sequential import critical, p_value
from taskpilot_instrument.context import Ids
from taskpilot_instrument.semconv import COST_PARTIAL, Outcome
from taskpilot_instrument.sinks._trials import BLOCKS, Trial
from taskpilot_instrument.testing import Captured, capture

NAME = "planner-prompt"
BOTH = ["control", "terse"]
LOOKS = 50

#: Success, milliseconds and USD of a run, given its variant and unit.
Run = Callable[[str, int], tuple[bool, float, float | None]]


@pytest.fixture
def captured() -> Iterator[Captured]:
    """Instrumentation that writes no lines; time stands still."""
    with capture(fake_clock=True, logs="off") as everything:
        yield everything


def play(
    captured: Captured,
    units: Iterable[int],
    run: Run,
    *,
    names: Sequence[str] = (NAME,),
    variants: Sequence[str] = BOTH,
    weights: Sequence[float] | None = None,
    partial: bool = False,
) -> None:
    """Record one finished run for each unit, in every experiment of ``names`` at once."""
    designs = [design_of(name, variants, weights) for name in names]
    for number, unit in enumerate(units):
        pairs = tuple((design.experiment, assign(design, unit)) for design in designs)
        won, ms, usd = run(pairs[0][1], unit)
        outcome = Outcome.SUCCESS if won else Outcome.ERROR
        record = workflow_run(outcome=outcome, ms=ms, cost=None if usd is None else Decimal(repr(usd)))
        ids = Ids(f"req-{unit}-{number}", variants=pairs)
        source = COST_PARTIAL if partial else None
        captured.metrics.finished(replace(record, ids=ids, cost_source=source))


def alike(seed: int, *, rate: float = 0.9) -> Run:
    """Return runs that are the same whatever the variant."""
    chance = random.Random(seed)
    return lambda _variant, _unit: (
        chance.random() < rate,
        chance.lognormvariate(6, 0.5),
        round(chance.expovariate(100), 6),
    )


def effects(report: tp.ExperimentReport) -> dict[str, Verdict]:
    """Return the verdict of each figure of the one variant that is compared."""
    return {str(each.figure): each.verdict for each in report.effects}


# --- how often it is wrong ----------------------------------------------------------------------


def alarms(draw: Callable[[Any, tuple[int, int]], Any], difference: float, *, rates: bool, per_look: int) -> float:
    """Return the share of 2,000 experiments of two variants in which any of 50 looks finds a difference.

    :param draw: returns values of runs, one row for each experiment.
    :param difference: added to each value of the second variant.
    :param per_look: further runs of each variant at every look.
    """
    generator, size = np.random.default_rng(7), (2_000, per_look)
    sums, squares, found = np.zeros((2, 2_000)), np.zeros((2, 2_000)), np.zeros(2_000, bool)
    for look in range(1, LOOKS + 1):
        n = look * per_look
        for arm in (0, 1):
            values = draw(generator, size) + arm * difference
            sums[arm] += values.sum(1)
            squares[arm] += (values * values).sum(1)
        if n >= 100:
            variance = (squares / n - (sums / n) ** 2) / (n - 1)
            if rates:
                smoothed = (sums + 1) / (n + 2)
                variance = np.maximum(variance, smoothed * (1 - smoothed) / n)
            found |= abs(sums[1] - sums[0]) / n > critical(2 * n, 0.05) * np.sqrt(variance.sum(0))
    return float(found.mean())


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("per_look", [10, 100])
def test_fifty_looks_at_equal_rates_seldom_find_a_difference(rate: float, per_look: int) -> None:
    """False alarms stay below 5 % although every look could be the last."""
    wrong = alarms(lambda random, size: (random.random(size) < rate).astype(float), 0.0, rates=True, per_look=per_look)
    assert wrong <= 0.05


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_fifty_looks_at_equal_costs_seldom_find_a_difference(spread: float) -> None:
    """So they do with costs and latencies, of which few are very large."""
    assert alarms(lambda random, size: random.lognormal(0, spread, size), 0.0, rates=False, per_look=40) <= 0.05


def test_a_small_variant_of_costly_runs_is_not_taken_for_a_cheap_one() -> None:
    """Where one run in ten has the variant, and few runs in a thousand cost the most, it is still seldom found cheaper.

    It may have met none of the dearest runs yet, and so know neither its mean nor how much its runs vary.
    """
    generator, wrong = np.random.default_rng(7), 0
    for _ in range(200):
        trial = Trial(design_of(NAME, BOTH, [9, 1]))
        alarm = False
        for _ in range(10):
            for variant, arm in trial.arms.items():
                runs = 900 if variant == "control" else 100
                blocks, costs = generator.integers(BLOCKS, size=runs), generator.lognormal(0, 2, runs)
                np.add.at(np.frombuffer(arm.cost.counts, np.int64), blocks, 1)
                np.add.at(np.frombuffer(arm.cost.totals), blocks, costs)
            found = _effects.effects(trial, list(trial.arms.values()), 1, 5)
            alarm |= any(each.verdict in {Verdict.BETTER, Verdict.WORSE} for each in found)
        wrong += alarm
    assert wrong <= 10


def test_looking_often_with_a_planned_test_is_often_wrong() -> None:
    """The simulation would notice: two standard errors, right for one look, are wrong far more often."""
    generator = np.random.default_rng(7)
    sums, found = np.zeros(2_000), np.zeros(2_000, bool)
    for look in range(1, LOOKS + 1):
        sums += generator.normal(0, 1, (2_000, 40)).sum(1)
        found |= abs(sums) > 1.96 * math.sqrt(40 * look)
    assert found.mean() > 0.2


def test_a_true_effect_is_found() -> None:
    """A latency that is 20 % longer is found within 2,000 runs of each variant in nearly every experiment."""
    assert alarms(lambda random, size: random.normal(1, 1, size), 0.2, rates=False, per_look=40) >= 0.95


@pytest.mark.parametrize("n", [100, 500, 2_000, 50_000])
@pytest.mark.parametrize("alpha", [0.05, 0.0125, 0.001])
def test_interval_and_p_value_agree(n: int, alpha: float) -> None:
    """The p-value is alpha where the interval ends at zero, less beyond, more within."""
    edge = critical(n, alpha)
    assert alpha == pytest.approx(p_value(edge, n, alpha))
    assert p_value(edge * 1.01, n, alpha) < alpha < p_value(edge * 0.99, n, alpha)
    assert 1.0 == p_value(0.0, n, alpha)


@pytest.mark.parametrize("variants", [BOTH, ["control", "a", "b", "c"]])
def test_reports_on_equal_variants_are_seldom_wrong(variants: list[str]) -> None:
    """Of 48 experiments, each looked at ten times, at most 5 % say of any figure that a variant differs."""
    wrong = 0
    for seed in range(3):
        with capture(fake_clock=True, logs="off") as captured:
            names, run, differing = [f"aa-{seed}-{n}" for n in range(16)], alike(seed), set()
            for look in range(10):
                units = range(look * 150, (look + 1) * 150)
                play(captured, units, run, names=names, variants=variants)
                reports = [captured.handle.experiment_report(name) for name in names]
                differing |= {
                    each.experiment
                    for each in reports
                    if any(effect.verdict in {Verdict.BETTER, Verdict.WORSE} for effect in each.effects)
                }
                assert not any(each.assignment_broken for each in reports)
            wrong += len(differing)
    assert wrong <= 0.05 * 48


def test_many_runs_of_few_users_do_not_look_like_many_users(captured: Captured) -> None:
    """Where users differ much more than variants, equal variants still do not differ, though 8,000 runs say so."""
    names = [f"users-{n}" for n in range(16)]
    chance = random.Random(5)
    hard = {user: chance.random() < 0.3 for user in range(200)}
    run: Run = lambda _variant, user: (not hard[user], 2_000.0 if hard[user] else 500.0, 0.01)  # noqa: E731
    for _ in range(4):
        play(captured, [user for user in range(200) for _ in range(10)], run, names=names)
        reports = [captured.handle.experiment_report(name) for name in names]
        differing = {
            each.experiment for each in reports if {Verdict.BETTER, Verdict.WORSE} & set(effects(each).values())
        }
        assert set() == differing
    naive = math.sqrt(2 * 0.3 * 0.7 / 4_000) * 100 * critical(8_000, 0.0125)
    assert max(abs(each.effects[0].difference or 0) for each in reports) > naive


def test_a_handful_of_units_is_not_judged(captured: Captured) -> None:
    """Ten users tell nothing, however many runs they make."""
    play(
        captured, [user for user in range(10) for _ in range(200)], lambda variant, _unit: (variant == "terse", 1, 0.1)
    )
    report = captured.handle.experiment_report(NAME)
    assert {Verdict.KEEP_RUNNING} == set(effects(report).values())
    assert report.effects[0].low is None
    assert 100 == report.effects[0].difference


# --- what it says -------------------------------------------------------------------------------


def test_nothing_is_said_before_there_is_enough(captured: Captured) -> None:
    """With fewer than a hundred runs of a variant there is no interval."""
    play(captured, range(150), lambda variant, _unit: (variant == "terse", 1.0, 0.1))
    report = captured.handle.experiment_report(NAME)
    assert {Verdict.KEEP_RUNNING} == set(effects(report).values())
    assert {(None, None, None)} == {(each.low, each.high, each.sure_percent) for each in report.effects}


def test_a_better_variant_is_found(captured: Captured) -> None:
    """Of 16 experiments with a success rate of 85 in place of 70 %, most are decided after 800 runs, the right way."""
    chance = random.Random(1)
    found = []
    for n in range(16):
        run: Run = lambda variant, _: (chance.random() < (0.85 if variant == "terse" else 0.7), 500.0, 0.01)  # noqa: E731
        play(captured, range(800), run, names=[f"ab-{n}"])
        found.append(captured.handle.experiment_report(f"ab-{n}"))
    assert sum(each.verdict is Verdict.BETTER for each in found) >= 12
    assert all(each.verdict in {Verdict.BETTER, Verdict.KEEP_RUNNING} for each in found)
    assert all((each.effects[0].sure_percent or 0) > 95 for each in found if each.verdict is Verdict.BETTER)


def faster(variant: str, chance: random.Random, rate: float = 0.98) -> tuple[bool, float, float | None]:
    """Return a run whose latency is a third shorter with the second variant."""
    return chance.random() < rate, chance.gauss(1_000, 100) * (0.66 if variant == "terse" else 1), 0.01


def test_no_difference_is_a_finding(captured: Captured) -> None:
    """Where all intervals lie within the margins there is nothing left to wait for."""
    chance = random.Random(2)
    play(captured, range(6_000), lambda _variant, _unit: (chance.random() < 0.98, chance.gauss(1_000, 200), 0.01))
    report = captured.handle.experiment_report(NAME)
    assert Verdict.NO_DIFFERENCE is report.verdict
    assert {"success_rate", "cost_per_run_usd", "latency_ms"} == {
        figure for figure, verdict in effects(report).items() if verdict is Verdict.NO_DIFFERENCE
    }
    assert all((each.sure_percent or 0) > 95 for each in report.effects if each.value is not None)
    strict = captured.handle.experiment_report(NAME, margin_points=0.1, margin_percent=0.1)
    assert Verdict.KEEP_RUNNING is strict.verdict


def test_what_is_faster_counts_once_it_is_not_worse(captured: Captured) -> None:
    """A variant that is faster is not better before its success rate is known not to be lower."""
    chance = random.Random(3)
    play(captured, range(500), lambda variant, _unit: faster(variant, chance))
    early = captured.handle.experiment_report(NAME)
    play(captured, range(500, 6_000), lambda variant, _unit: faster(variant, chance))
    late = captured.handle.experiment_report(NAME)
    assert [Verdict.BETTER] * 2 == [effects(each)["latency_ms"] for each in (early, late)]
    assert [Verdict.KEEP_RUNNING, Verdict.BETTER] == [early.verdict, late.verdict]


def test_faster_and_wrong_is_a_trade_off(captured: Captured) -> None:
    """A variant that gains on one figure and loses on another is neither better nor worse."""
    chance = random.Random(4)
    play(captured, range(2_000), lambda variant, _: faster(variant, chance, 0.7 if variant == "terse" else 0.95))
    report = captured.handle.experiment_report(NAME)
    assert {"terse": Verdict.TRADE_OFF} == report.verdicts
    assert Verdict.WORSE is effects(report)["success_rate"]


def test_slower_is_worse(captured: Captured) -> None:
    """More milliseconds and more dollars are losses."""
    chance = random.Random(5)
    play(captured, range(1_000), lambda variant, _: faster("terse" if variant == "control" else "", chance, 0.9))
    report = captured.handle.experiment_report(NAME)
    assert Verdict.WORSE is report.verdict
    assert Verdict.WORSE is effects(report)["latency_ms"]


def test_each_variant_is_compared_with_the_first(captured: Captured) -> None:
    """Of several variants each has its own verdict."""
    chance = random.Random(6)
    rates = {"control": 0.7, "good": 0.95, "bad": 0.4}
    run: Run = lambda variant, _unit: (chance.random() < rates[variant], 500.0, 0.01)  # noqa: E731
    play(captured, range(1_500), run, variants=list(rates))
    assert {"good": Verdict.BETTER, "bad": Verdict.WORSE} == captured.handle.experiment_report(NAME).verdicts


# --- the sample ratio ---------------------------------------------------------------------------


def test_lost_runs_of_a_variant_break_the_assignment(captured: Captured) -> None:
    """Where a fifth of one variant's units never ends a run, nothing else is said."""
    design = design_of(NAME, BOTH, None)
    kept = [unit for unit in range(2_000) if unit % 5 or assign(design, unit) == "control"]
    play(captured, kept, lambda variant, _unit: (variant == "terse", 1.0, 0.1))
    report = captured.handle.experiment_report(NAME)
    assert report.assignment_broken
    assert {"terse": Verdict.BROKEN} == report.verdicts
    assert "do not read on" in str(report)
    assert "Against" not in str(report) + report._repr_html_()


@pytest.mark.parametrize("weights", [None, [9, 1], [1, 3]])
def test_units_as_designed_are_as_designed(captured: Captured, weights: list[float] | None) -> None:
    """Whatever the weights, and however unequal the runs of units, what is drawn as designed passes."""
    units = [unit for unit in range(1_000) for _ in range(1 + unit % 4)]
    play(captured, units, lambda _variant, _unit: (True, 1.0, 0.1), weights=weights)
    report = captured.handle.experiment_report(NAME)
    assert 1_000 == sum(each.units for each in report.variants)
    assert (report.sample_ratio_p or 0) > 0.01


def test_many_units_are_counted_by_a_fair_sample(captured: Captured) -> None:
    """Units are held for no more than 8,192; those that are still tell a wrong ratio."""
    play(captured, range(30_000), lambda _variant, _unit: (True, 1.0, 0.1))
    fair = captured.handle.experiment_report(NAME)
    assert 4_096 <= sum(each.units for each in fair.variants) <= 8_192
    assert (fair.sample_ratio_p or 0) > 0.01
    design = design_of("lost", BOTH, None)
    kept = [unit for unit in range(30_000) if unit % 10 or assign(design, unit) == "control"]
    play(captured, kept, lambda _variant, _unit: (True, 1.0, 0.1), names=["lost"])
    assert captured.handle.experiment_report("lost").assignment_broken


def test_too_few_units_are_not_checked(captured: Captured) -> None:
    """A handful of units proves nothing, and needs no scipy."""
    play(captured, range(6), lambda _variant, _unit: (True, 1.0, 0.1))
    assert captured.handle.experiment_report(NAME).sample_ratio_p is None


# --- figures ------------------------------------------------------------------------------------


def test_figures_of_a_variant(captured: Captured) -> None:
    """Runs, success, exact cost per run and latency quantiles stand beside each other."""
    for n in range(100):
        play(captured, [n], lambda variant, _: (variant == "terse", 200.0 if variant == "terse" else 100.0, 0.1))
    control, terse = captured.handle.experiment_report(NAME).variants
    assert 100 == control.runs + terse.runs
    assert (0.0, 100.0) == (control.success_rate, terse.success_rate)
    assert [pytest.approx(0.1)] * 2 == [control.cost_per_run_usd, terse.cost_per_run_usd]
    assert terse.total_cost_usd == float(terse.runs * Decimal("0.1"))
    assert terse.p50_latency_ms == pytest.approx(200, rel=0.01)
    assert terse.p95_latency_ms == pytest.approx(200, rel=0.01)
    assert (50.0, None, 0) == (control.share_percent, control.correctness_percent, control.feedback)


@pytest.mark.parametrize(("usd", "partial"), [(None, False), (0.5, True)])
def test_an_unknown_cost_is_no_cost_of_nothing(captured: Captured, usd: float | None, partial: bool) -> None:
    """Runs whose cost is not wholly known do not count for the cost per run."""
    play(captured, range(300), lambda _variant, _unit: (True, 1.0, usd), partial=partial)
    report = captured.handle.experiment_report(NAME)
    assert {(0, None)} == {(each.costed_runs, each.cost_per_run_usd) for each in report.variants}
    assert {None} == {each.difference for each in report.effects if each.figure == "cost_per_run_usd"}


def test_a_window_has_figures_and_no_verdict(captured: Captured) -> None:
    """Of the last minutes only those figures are told; effects are told from the beginning alone."""
    assert captured.clock is not None
    play(captured, range(500), lambda variant, _unit: (variant == "terse", 1.0, 0.1))
    captured.clock.advance(1_000)
    play(captured, range(500, 600), lambda _variant, _unit: (True, 1.0, 0.1))
    report = captured.handle.experiment_report(NAME, window="5m")
    assert 100 == sum(each.runs for each in report.variants)
    assert (Verdict.NOT_JUDGED, ()) == (report.verdict, report.effects)
    assert 600 == sum(each.runs for each in captured.handle.experiment_report(NAME).variants)


def test_another_design_begins_anew(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    """Runs under other weights are not mixed with those before, and that is said once."""
    play(captured, range(300), lambda _variant, _unit: (True, 1.0, 0.1))
    with caplog.at_level(logging.WARNING, "taskpilot_instrument"):
        play(captured, range(40), lambda _variant, _unit: (True, 1.0, 0.1), weights=[9, 1])
        play(captured, range(40), lambda _variant, _unit: (True, 1.0, 0.1))
    assert 40 == sum(each.runs for each in captured.handle.experiment_report(NAME).variants)
    assert 1 == caplog.text.count("begins anew")
    assert "control 90%, terse 10%, before control 50%, terse 50%" in caplog.text
    runs = "taskpilot_experiment_runs_total"
    labels = [{"experiment": NAME, "variant": variant, "outcome": "success"} for variant in BOTH]
    assert 380 == sum(captured.metrics.registry.get_sample_value(runs, each) or 0 for each in labels)


def test_a_variant_more_is_told(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    """A third variant of an experiment that runs is another design, too: a warning names both."""
    play(captured, range(40), lambda _variant, _unit: (True, 1.0, 0.1))
    with tp.workflow("w"):
        tp.experiment(NAME, [*BOTH, "third"], unit="user-1")
    assert [*BOTH, "third"] == [each.variant for each in captured.handle.experiment_report(NAME).variants]
    assert "control 33%, terse 33%, third 33%, before control 50%, terse 50%" in caplog.text


def test_runs_from_elsewhere_count_without_their_unit(captured: Captured) -> None:
    """A variant that came as baggage is a name alone: its runs count, each as a unit of its own."""
    play(captured, range(50), lambda _variant, _unit: (True, 1.0, 0.1))
    for n in range(50):
        ids = Ids(f"req-{n}", variants=((NAME, "terse"), ("not-known-here", "b"), (NAME, "nonsense")))
        captured.metrics.finished(replace(workflow_run(), ids=ids))
    report = captured.handle.experiment_report(NAME)
    assert (100, 50) == (sum(each.runs for each in report.variants), sum(each.units for each in report.variants))
    assert (NAME,) == captured.handle.experiment_names()


def test_experiments_are_bounded(captured: Captured) -> None:
    """Twenty experiments are compared; of further ones there are metrics, and it is counted that they were too many."""
    for n in range(30):
        play(captured, range(3), lambda _variant, _unit: (True, 1.0, 0.1), names=[f"e{n}"])
    assert tuple(f"e{n}" for n in range(20)) == captured.handle.experiment_names()
    overflow = captured.handle.health().label_overflow
    assert overflow is not None
    assert 30 == overflow["experiment"]
    assert 'experiment="e29"' in captured.prometheus_text


# --- feedback -----------------------------------------------------------------------------------


def votes(captured: Captured) -> list[tuple[float | None, int]]:
    """Return correctness and verdicts of each variant."""
    return [(each.correctness_percent, each.feedback) for each in captured.handle.experiment_report(NAME).variants]


@pytest.mark.parametrize("ledger", [None, "file"])
def test_feedback_counts_for_the_variant(tmp_path: Path, ledger: str | None) -> None:
    """A verdict that comes later finds the variant of its run; one that changes is counted once."""
    given: dict[str, Any] = {} if ledger is None else {"ledger": str(tmp_path / "ledger.db")}
    with capture(**given) as captured:
        for n in range(6):
            with tp.workflow("triage", request_id=f"req-{n}"):
                tp.experiment(NAME, BOTH, unit=f"user-{n}")
        for n in range(6):
            captured.handle.record_feedback(n % 2 == 0, request_id=f"req-{n}", user="ada")
        assert [(100 * 2 / 3, 3), (100 / 3, 3)] == [(pytest.approx(share), count) for share, count in votes(captured)]
        captured.handle.record_feedback(True, request_id="req-5", user="ada")
        captured.handle.record_feedback(True, request_id="req-5", user="ada")
        captured.handle.record_feedback(True, request_id="req-unknown")
        assert [(100, 3), (pytest.approx(100 / 3), 3)] == votes(captured)


def test_correctness_is_judged_where_users_answer(captured: Captured) -> None:
    """Verdicts of users decide as success does."""
    chance = random.Random(8)
    design = design_of(NAME, BOTH, None)
    for n in range(800):
        variant: Assigned = assign(design, n)
        captured.metrics.finished(replace(workflow_run(), ids=Ids(f"req-{n}", variants=((NAME, variant),))))
        right = chance.random() < (0.9 if variant == "terse" else 0.6)
        captured.metrics.trials.voted([(NAME, variant)], f"req-{n}", right)
    report = captured.handle.experiment_report(NAME)
    assert Verdict.BETTER is effects(report)["correctness"]


# --- how it is asked and shown ------------------------------------------------------------------


def test_an_experiment_that_is_not_known_is_named(captured: Captured) -> None:
    """The error says which there are."""
    play(captured, range(3), lambda _variant, _unit: (True, 1.0, 0.1))
    with pytest.raises(tp.ConfigurationError, match=r"'other'.*known: planner-prompt"):
        captured.handle.experiment_report("other")


@pytest.mark.parametrize("margin", [{"margin_points": 0}, {"margin_percent": -1}, {"margin_points": True}])
def test_a_margin_is_above_zero(captured: Captured, margin: dict[str, float]) -> None:
    """Anything else is refused, and named."""
    with pytest.raises(tp.ConfigurationError, match=next(iter(margin))):
        captured.handle.experiment_report(NAME, **margin)  # type: ignore[arg-type]


def test_a_missing_scipy_is_named(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which extra to install."""
    play(captured, range(100), lambda _variant, _unit: (True, 1.0, 0.1))
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(tp.ConfigurationError, match=r"taskpilot-instrument\[experiments\]"):
        captured.handle.experiment_report(NAME)


def test_asking_needs_instrumentation() -> None:
    """Before instrument() there is nothing to report."""
    with pytest.raises(tp.NotInstrumentedError):
        tp.experiment_report(NAME)


def test_a_report_is_shown_as_tables(captured: Captured) -> None:
    """Figures, the assignment and the effects stand in columns; JSON has all of it, and HTML the same tables."""
    play(captured, range(400), lambda variant, _: (variant == "terse", 100.0, 0.1))
    report = tp.experiment_report(NAME)
    expected = """\
Experiment planner-prompt, since its start: terse better
           runs   success  correct  cost per run     p50     p95
  control   206    0.00 %        –       $0.1000  100 ms  100 ms
  terse     194  100.00 %        –       $0.1000  100 ms  100 ms
Assignment: 206 : 194 units, as designed (p = 0.55).
Against control:
  terse: success rate  +100.00 points  +97.31 points … +100.00 points         better  99.9 % sure
  terse: correctness                –                               –   keep running            –
  terse: cost per run        +$0.0000             +$0.0000 … +$0.0000  no difference  99.9 % sure
  terse: mean latency        +0.00 ms             +0.00 ms … +0.00 ms  no difference  99.9 % sure"""
    assert expected == str(report)
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert "better" == told["verdict"]
    assert {"success_rate", "correctness", "cost_per_run_usd", "latency_ms"} == {
        each["figure"] for each in told["effects"]
    }
    assert "<td>terse: success rate</td>" in report._repr_html_()
    with pytest.raises(AttributeError):
        report.experiment = "other"  # type: ignore[misc]
