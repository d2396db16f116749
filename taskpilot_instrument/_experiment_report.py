"""``experiment_report(...)``: what the variants of an experiment came to, and whether the difference is one."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from taskpilot_instrument._display import UNKNOWN, html_table, milliseconds, percent, span, table, usd
from taskpilot_instrument._effects import RATES, Effect, Figure, Verdict, effects
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.golden import parse_window
from taskpilot_instrument.sinks._signals import percent as share
from taskpilot_instrument.sinks._trials import Trials
from taskpilot_instrument.sinks._windows import Cell

#: Below this the units were not shared out as designed, and no difference means anything. Of sound experiments that
#: are looked at fifty times some one in a hundred falls below it.
_BROKEN_BELOW: Final = 0.001
#: A chi-square of fewer expected units is no chi-square.
_LEAST_EXPECTED: Final = 5
#: What is shown of each variant.
SHOWN: Final = ("runs", "success", "correct", "cost per run", "p50", "p95")
_LABELS: Final = {
    Figure.SUCCESS: "success rate",
    Figure.CORRECTNESS: "correctness",
    Figure.COST: "cost per run",
    Figure.LATENCY: "mean latency",
}


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """What the runs of one variant came to; None is unknown.

    :param share_percent: of the units, as designed.
    :param units: distinct units that took part; where they are very many, of a fair sample of them.
    :param costed_runs: runs whose cost is wholly known; ``cost_per_run_usd`` is their mean.
    """

    variant: str
    share_percent: float
    units: int
    runs: int
    successes: int
    success_rate: float | None
    feedback: int
    correctness_percent: float | None
    costed_runs: int
    total_cost_usd: float
    cost_per_run_usd: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None

    def shown(self) -> tuple[str, ...]:
        """Return the figures as they are shown, in the order of ``SHOWN``."""
        return (
            f"{self.runs:,}",
            percent(self.success_rate),
            percent(self.correctness_percent),
            usd(self.cost_per_run_usd),
            milliseconds(self.p50_latency_ms),
            milliseconds(self.p95_latency_ms),
        )


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """The variants of one experiment, and how they differ.

    :param sample_ratio_p: how likely units are shared out as they were, if they are drawn as designed; None where
        there are too few, or none is known.
    """

    experiment: str
    variants: tuple[VariantFigures, ...]
    effects: tuple[Effect, ...]
    sample_ratio_p: float | None
    window_seconds: int | None = None

    @property
    def assignment_broken(self) -> bool:
        """True where units were not shared out as designed: do not read on."""
        return self.sample_ratio_p is not None and self.sample_ratio_p < _BROKEN_BELOW

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What can be said of each variant against the first, by its name.

        A variant is better where a figure of it is and none is worse. That it is cheaper or faster counts only once its
        success rate, and its correctness where users gave feedback, are not lower by more than the margin.
        """
        return {each.variant: self._verdict_of(each.variant) for each in self.variants[1:]}

    @property
    def verdict(self) -> Verdict:
        """The verdict of the experiment: that of the variant that can be told most about, the good ones first."""
        order = (
            Verdict.BROKEN, Verdict.NOT_JUDGED, Verdict.BETTER, Verdict.KEEP_RUNNING, Verdict.TRADE_OFF,
            Verdict.NO_DIFFERENCE, Verdict.WORSE,
        )  # fmt: skip
        found = set(self.verdicts.values())
        return next(verdict for verdict in order if verdict in found)

    def _verdict_of(self, variant: str) -> Verdict:
        if self.assignment_broken:
            return Verdict.BROKEN
        if self.window_seconds is not None:
            return Verdict.NOT_JUDGED
        effects = [each for each in self.effects if each.variant == variant and each.value is not None]
        found = {each.verdict for each in effects}
        if found >= {Verdict.BETTER, Verdict.WORSE}:
            return Verdict.TRADE_OFF
        if Verdict.WORSE in found:
            return Verdict.WORSE
        if Verdict.BETTER in found and all(each.not_lower for each in effects if each.figure in RATES):
            return Verdict.BETTER
        return Verdict.NO_DIFFERENCE if found == {Verdict.NO_DIFFERENCE} else Verdict.KEEP_RUNNING

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "experiment": self.experiment,
            "window_seconds": self.window_seconds,
            "verdict": str(self.verdict),
            "verdicts": {variant: str(verdict) for variant, verdict in self.verdicts.items()},
            "assignment": {"broken": self.assignment_broken, "p": self.sample_ratio_p},
            "variants": [_fields(each) for each in self.variants],
            "effects": [_fields(each) for each in self.effects],
            "explanation": self._assignment(),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Return what :meth:`as_dict` was asked of, such as from the JSON of another process."""
        return cls(
            found["experiment"],
            tuple(VariantFigures(**each) for each in found["variants"]),
            tuple(
                Effect(**{**each, "figure": Figure(each["figure"]), "verdict": Verdict(each["verdict"])})
                for each in found["effects"]
            ),
            found["assignment"]["p"],
            found["window_seconds"],
        )

    def __str__(self) -> str:
        lines = [self._caption(), *table(self._rows()), self._assignment()]
        if self.effects and not self.assignment_broken:
            lines += [f"Against {self.variants[0].variant}:", *table([_row(each) for each in self.effects])]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        shown = [html_table(self._caption(), self._rows())]
        if self.effects and not self.assignment_broken:
            rows = [["", "difference", "95 % at every look", "verdict", ""]]
            rows += [_row(each) for each in self.effects]
            shown.append(html_table(f"Against {self.variants[0].variant}. {self._assignment()}", rows))
        return "".join(shown)

    def _caption(self) -> str:
        window = "since its start" if self.window_seconds is None else f"last {span(self.window_seconds)}"
        told = [f"{variant} {verdict}" for variant, verdict in self.verdicts.items()]
        if self.assignment_broken or self.window_seconds is not None:
            told = [str(self.verdict)]
        return f"Experiment {self.experiment}, {window}: {', '.join(told)}"

    def _assignment(self) -> str:
        if self.sample_ratio_p is None:
            return "Assignment: too few units to check."
        units = " : ".join(f"{each.units:,}" for each in self.variants)
        if self.assignment_broken:
            return (
                f"Assignment broken, do not read on: {units} units are not what was designed "
                f"(p = {self.sample_ratio_p:.2g}). Look for runs of one variant that are lost or begun elsewhere."
            )
        return f"Assignment: {units} units, as designed (p = {self.sample_ratio_p:.2g})."

    def _rows(self) -> list[list[str]]:
        return [["", *SHOWN], *([each.variant, *each.shown()] for each in self.variants)]


def _row(effect: Effect) -> list[str]:
    show = _difference(effect.figure)
    interval = UNKNOWN if effect.low is None or effect.high is None else f"{show(effect.low)} … {show(effect.high)}"
    sure = UNKNOWN if effect.sure_percent is None else f"{min(effect.sure_percent, 99.9):.1f} % sure"
    return [
        f"{effect.variant}: {_LABELS[effect.figure]}",
        UNKNOWN if effect.difference is None else show(effect.difference),
        interval,
        str(effect.verdict),
        sure,
    ]


def _difference(figure: Figure) -> Any:
    """Return what shows a difference in a figure, with its sign."""
    if figure is Figure.COST:
        return lambda value: f"{'' if value < 0 else '+'}{usd(value)}"
    return lambda value: f"{value:+.2f} {'ms' if figure is Figure.LATENCY else 'points'}"


def _fields(shown: VariantFigures | Effect) -> dict[str, Any]:
    found = {name: getattr(shown, name) for name in shown.__slots__}
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in found.items()}


# --- computing ----------------------------------------------------------------------------------


def report(
    trials: Trials, experiment: str, *, window: str | None, margin_points: float, margin_percent: float
) -> ExperimentReport:
    """Compute the report of an experiment; see :meth:`Instrumentation.experiment_report`."""
    seconds = None if window is None else parse_window(window)
    for name, margin in (("margin_points", margin_points), ("margin_percent", margin_percent)):
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < math.inf:
            raise ConfigurationError(f"experiment_report({name}=…) takes a number above 0, not {margin!r}")
    with trials.lock:
        trial = trials.trials.get(experiment)
        if trial is None:
            raise ConfigurationError(
                f"no run of experiment {experiment!r:.100} has ended yet; known: {', '.join(trials.trials) or 'none'}"
            )
        names = trial.design.variants
        arms = [trial.arms[name] for name in names]
        met = Counter(trial.units.values())
        counted = [met[name] for name in names]
        cells = [
            arm.cell if seconds is None else trials.cell(experiment, name, seconds * 1_000_000_000)
            for name, arm in zip(names, arms, strict=True)
        ]
        variants = tuple(_figures(*each) for each in zip(names, trial.design.shares, counted, cells, strict=True))
        found = effects(trial, arms, margin_points, margin_percent) if seconds is None else ()
    return ExperimentReport(experiment, variants, found, _sample_ratio(counted, trial.design.shares), seconds)


def _figures(variant: str, designed: float, units: int, cell: Cell) -> VariantFigures:
    # A vote that was changed is taken back when it is changed: in a window it may be missing below zero.
    correct, incorrect = max(0, cell.correct), max(0, cell.incorrect)
    return VariantFigures(
        variant,
        100 * designed,
        units,
        cell.runs,
        cell.successes,
        share(cell.successes, cell.runs),
        correct + incorrect,
        share(correct, correct + incorrect),
        cell.priced,
        float(cell.cost),
        float(cell.cost) / cell.priced if cell.priced else None,
        cell.latency.quantile(50),
        cell.latency.quantile(95),
    )


def _sample_ratio(counted: Sequence[int], shares: Sequence[float]) -> float | None:
    """Return the p-value of a chi-square test that units were shared out as designed."""
    expected = [designed * sum(counted) for designed in shares if designed]
    if min(expected) < _LEAST_EXPECTED:
        return None
    seen = [units for units, designed in zip(counted, shares, strict=True) if designed]
    distance = sum((units - wanted) ** 2 / wanted for units, wanted in zip(seen, expected, strict=True))
    return float(_scipy().chdtrc(len(seen) - 1, distance))


def _scipy() -> Any:
    try:
        from scipy import special  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError(
            "experiment reports need the package scipy: pip install 'taskpilot-instrument[experiments]'"
        ) from error
    return special
