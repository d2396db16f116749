"""Expressions and panels of the dashboard: what build_dashboard.py puts together."""

from collections.abc import Iterable
from typing import Any, Final

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from taskpilot_instrument import semconv
from taskpilot_instrument._verdicts import THRESHOLDS, Threshold

PROMETHEUS: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED = "green", "yellow", "red"
#: Variables that narrow a family down, by the label that they match.
FILTERS: Final = {"workflow": "$workflow", "agent": "$agent", "model": "$model"}
#: The window of lines, and that of a figure for the whole range on the screen.
STEP, RANGE = "$__rate_interval", "$__range"

# --- expressions --------------------------------------------------------------------------------


def series(family: str, *matchers: str, suffix: str = "", whole: bool = False) -> str:
    """Return the selector of a family for the chosen service, workflow, agent and model.

    :param whole: of the whole service, whatever else is chosen.
    """
    labels = () if whole else semconv.METRIC_LABELS[family]
    chosen = ['job=~"$service"', *(f'{label}=~"{value}"' for label, value in FILTERS.items() if label in labels)]
    return f"{family}{suffix}{{{', '.join([*chosen, *matchers])}}}"


def total(family: str, *matchers: str, by: str = "", whole: bool = False) -> str:
    """Return what a counter grew by in the range, what its series were born with included."""
    name = series(family, *matchers, whole=whole)
    born = f"(min_over_time({name}[{RANGE}]) unless max_over_time({name}[1h] offset {RANGE}))"
    grown = f"increase({name}[{RANGE}])"
    return f"sum{_by(by)} (({grown} + {born}) or {grown})"


def per_second(family: str, *matchers: str, by: str = "") -> str:
    """Return how fast a counter grows."""
    return f"sum{_by(by)} (rate({series(family, *matchers)}[{STEP}]))"


def quantile(percent: int, family: str, by: str = "", window: str = STEP) -> str:
    """Return a percentile of a histogram in seconds."""
    labels = f"{by}, le" if by else "le"
    return (
        f"histogram_quantile({percent / 100:g}, sum by ({labels}) (rate({series(family, suffix='_bucket')}[{window}])))"
    )


def share(part: str, whole: str, by: str = "") -> str:
    """Return one growth in percent of another; 0 where there is no part, nothing where there is no whole."""
    none = f"0 * {whole}" if by else "vector(0)"
    return f"100 * ({part} or {none}) / ({whole} > 0)"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


# --- panels -------------------------------------------------------------------------------------


def query(expr: str, legend: str = "", *, instant: bool = False, exemplar: bool = False) -> Dataquery:
    """Return a query of a panel."""
    built = Dataquery().expr(expr).legend_format(legend or "__auto").datasource(PROMETHEUS)
    built = built.instant() if instant else built.range()
    return built.exemplar(exemplar=True) if exemplar else built


def lines(title: str, unit: str, *queries: Dataquery, what: str, width: int = 12) -> timeseries.Panel:
    """Return a panel with lines over time."""
    panel = timeseries.Panel().title(title).description(what).unit(unit).datasource(PROMETHEUS).height(8).span(width)
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.TABLE).calcs(["mean", "max"])
    legend = legend.placement(kinds.LegendPlacement.BOTTOM).show_legend(show_legend=True)
    panel = panel.legend(legend).fill_opacity(8).min(0)
    tooltip = common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    return _with(panel.tooltip(tooltip), queries)


def number(
    title: str, unit: str, expr: str, *, what: str, steps: dashboard.ThresholdsConfig | None = None, decimals: int = 2
) -> stat.Panel:
    """Return a panel with one figure for the range on the screen."""
    panel = stat.Panel().title(title).description(what).unit(unit).decimals(decimals).datasource(PROMETHEUS)
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = panel.reduce_options(reduce).graph_mode(kinds.BigValueGraphMode.NONE).no_value("–").height(5).span(4)
    if steps is not None:
        panel = panel.thresholds(steps).color_mode(kinds.BigValueColorMode.BACKGROUND)
    return panel.with_target(query(expr, instant=True))


def bars(
    title: str,
    unit: str,
    expr: str,
    legend: str,
    *,
    what: str,
    steps: dashboard.ThresholdsConfig | None = None,
    width: int = 8,
) -> bargauge.Panel:
    """Return a panel with one bar for each series, for the range on the screen."""
    panel = bargauge.Panel().title(title).description(what).unit(unit).datasource(PROMETHEUS).height(8).span(width)
    panel = panel.orientation(kinds.VizOrientation.HORIZONTAL).no_value("–").min(0)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if steps is not None:
        panel = panel.thresholds(steps).max(100)
    return panel.with_target(query(expr, legend, instant=True))


def columns(title: str, by: str, *named: tuple[str, str, str], what: str) -> table.Panel:
    """Return a table with one row for each value of a label, and a column for each expression (name, unit, query)."""
    panel = table.Panel().title(title).description(what).datasource(PROMETHEUS).height(8).span(24).no_value("–")
    names = {}
    for place, (name, unit, expr) in enumerate(named):
        ref = chr(ord("A") + place)
        panel = panel.with_target(query(expr, instant=True).format(PromQueryFormat.TABLE).ref_id(ref))
        names[f"Value #{ref}"] = name
        panel = panel.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    hidden = {"Time": True}
    organise: dict[str, Any] = {"excludeByName": hidden, "renameByName": names, "indexByName": {by: 0}}
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organise))


def heat(title: str, family: str, *, what: str) -> heatmap.Panel:
    """Return a heat map of a histogram, with its exemplars."""
    expr = f"sum by (le) (increase({series(family, suffix='_bucket')}[{STEP}]))"
    panel = heatmap.Panel().title(title).description(what).datasource(PROMETHEUS).height(8).span(12)
    panel = panel.calculate(calculate=False)
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel = panel.color(color).y_axis(heatmap.YAxisConfig().unit("s")).exemplars_color("rgba(31, 96, 196, 0.9)")
    return panel.with_target(query(expr, "{{le}}", exemplar=True).format(PromQueryFormat.HEATMAP))


def _with(panel: timeseries.Panel, queries: Iterable[Dataquery]) -> timeseries.Panel:
    for place, each in enumerate(queries):
        panel = panel.with_target(each.ref_id(chr(ord("A") + place)))
    return panel


def steps(key: str, scale: float = 1) -> dashboard.ThresholdsConfig:
    """Return the colours of a golden signal: those of the verdicts that the library gives.

    :param scale: from the signal's unit to the panel's.
    """
    bounds: Threshold = THRESHOLDS[key]
    healthy, warning = bounds.healthy * scale, bounds.warning * scale
    if bounds.more_is_better:
        return colours((None, RED), (warning, YELLOW), (healthy, GREEN))
    return colours((None, GREEN), (_beyond(healthy), YELLOW), (_beyond(warning), RED))


def colours(*bounds: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Return colours that begin at their bounds."""
    made = [models.Threshold(value=value, color=color) for value, color in bounds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _beyond(bound: float) -> float:
    """Return the least figure beyond a bound: a colour begins at its threshold, a verdict only after it."""
    return round(bound + 1e-6, 6)
