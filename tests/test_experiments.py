"""Experiments: who gets which variant, and what carries it."""

import asyncio
import copy
import json
import pickle
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import attach, detach, get_current

import taskpilot_instrument as tp
from taskpilot_instrument import experiments
from taskpilot_instrument._assignment import assign, design_of
from taskpilot_instrument.propagation import extract_headers
from taskpilot_instrument.testing import Captured, capture

NAME = "planner-prompt"
BOTH = ["control", "terse"]
KEY = "taskpilot.experiment.planner-prompt"

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
variant_lists = st.lists(names, min_size=2, max_size=10, unique=True)
units = st.one_of(st.text(min_size=1, max_size=40), st.integers(), st.uuids())


@pytest.fixture(autouse=True)
def own_context() -> Iterator[None]:
    """Leave no variant behind for the next test."""
    token = attach(get_current())
    yield
    detach(token)


def draw(unit: Any, variants: Sequence[str] = BOTH, weights: Sequence[float] | None = None, name: str = NAME) -> str:
    """Return what a unit gets, without any effect."""
    return assign(design_of(name, variants, weights), unit)


# --- assignment ---------------------------------------------------------------------------------


@given(names, variant_lists, units)
def test_a_unit_keeps_its_variant(name: str, variants: list[str], unit: Any) -> None:
    """The same unit gets the same variant at each call, in whatever order the variants are given."""
    first = tp.experiment(name, variants, unit=unit)
    assert first in variants
    assert first == tp.experiment(name, variants, unit=unit)
    assert first == tp.experiment(name, variants[::-1], unit=unit)


def test_the_variant_of_a_unit_does_not_change_with_releases() -> None:
    """These units got these variants once, and shall get them for ever."""
    assert ["control", "terse", "control", "terse", "terse", "control"] == [draw(f"user-{n}") for n in range(6)]
    assert draw(7) == draw("7")


def test_variants_are_as_many_as_their_weights_say() -> None:
    """Of 20,000 units each variant gets its share, within four standard errors."""
    weights = [5, 3, 2]
    counted = Counter(draw(n, ["a", "b", "c"], weights) for n in range(20_000))
    for variant, weight in zip("abc", weights, strict=True):
        share = weight / 10
        assert counted[variant] / 20_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


def test_experiments_are_drawn_apart() -> None:
    """What a unit gets in one experiment says nothing of what it gets in another."""
    counted = Counter((draw(n, name="one"), draw(n, name="two")) for n in range(10_000))
    assert 4 == len(counted)
    for count in counted.values():
        assert count / 10_000 == pytest.approx(0.25, abs=0.02)


@given(variant_lists, st.data(), st.lists(units, min_size=1, max_size=50))
def test_other_weights_move_as_few_units_as_they_can(variants: list[str], data: Any, some: list[Any]) -> None:
    """Where one variant's weight grows, units move to it alone; where it shrinks, from it alone."""
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(variants), max_size=len(variants)))
    place = data.draw(st.integers(0, len(variants) - 1))
    more = [weight * 3 if at == place else weight for at, weight in enumerate(weights)]
    for unit in some:
        before, after = draw(unit, variants, weights), draw(unit, variants, more)
        assert before == after or after == variants[place]


@given(variant_lists.map(lambda variants: variants[:9]), st.lists(units, min_size=1, max_size=50))
def test_a_new_variant_takes_units_and_moves_no_others(variants: list[str], some: list[Any]) -> None:
    """Every unit stays where it is, or goes to the new one."""
    for unit in some:
        assert draw(unit, [*variants, "brand-new"]) in {draw(unit, variants), "brand-new"}


def test_a_weight_of_zero_takes_no_units() -> None:
    """A variant can be switched off, and the others go on."""
    assert {"control"} == {draw(n, weights=[1, 0]) for n in range(200)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": ""}, "name="),
        ({"name": "two words"}, "name="),
        ({"name": None}, "name="),
        ({"variants": "control"}, "variants="),
        ({"variants": None}, "variants="),
        ({"variants": ["only"]}, "variants="),
        ({"variants": ["a", "a"]}, "variants="),
        ({"variants": ["a", "b,c"]}, "variants="),
        ({"variants": ["a", {}]}, "variants"),
        ({"variants": [f"v{n}" for n in range(11)]}, "2 to 10"),
        ({"weights": [1]}, "weights="),
        ({"weights": [1, -1]}, "weights="),
        ({"weights": [0, 0]}, "weights="),
        ({"weights": [1, float("nan")]}, "weights="),
        ({"weights": [1, "2"]}, "weights="),
        ({"weights": 2}, "weights="),
        ({"unit": None}, "unit="),
        ({"unit": ""}, "unit="),
        ({"unit": 1.5}, "unit="),
        ({"unit": True}, "unit="),
        ({"unit": "u" * 1001}, "unit="),
    ],
)
def test_what_is_not_valid_is_named(arguments: dict[str, Any], said: str) -> None:
    """A wrong argument raises at once and says which it is; the unit is not quoted."""
    given: dict[str, Any] = {"name": NAME, "variants": BOTH, "unit": "u1", **arguments}
    with pytest.raises(tp.ConfigurationError, match=said) as caught:
        tp.experiment(given.pop("name"), given.pop("variants"), **given)
    assert "uuu" not in str(caught.value)


def test_a_variant_is_text() -> None:
    """It compares, hashes, copies, pickles and goes to JSON as its name does."""
    variant = tp.experiment(NAME, BOTH, unit="user-1")
    assert "terse" == variant
    assert 1 == {"terse": 1}[variant]
    assert "terse" == pickle.loads(pickle.dumps(variant)) == copy.deepcopy(variant)
    assert '"terse"' == json.dumps(variant)


# --- what carries it ----------------------------------------------------------------------------


@tp.observed_agent
def agent(goal: str) -> str:
    """Do as told."""
    return goal


def carried(captured: Captured) -> list[tuple[str, Any, Any]]:
    """Return the name and tags of every span, in the order in which they ended."""
    tags = [(span.name, dict(span.attributes or {})) for span in captured.spans]
    return [(name, found.get("experiment"), found.get("variant")) for name, found in tags]


def test_a_run_and_what_is_beneath_it_carry_it(captured: Captured) -> None:
    """A call inside a run counts for the run itself and for what starts after it."""
    with tp.workflow("triage"):
        agent("before")
        tp.experiment(NAME, BOTH, unit="user-1")
        agent("after")
    with tp.workflow("other"):
        agent("later")
    assert [
        ("agent.execute", None, None),
        ("agent.execute", NAME, "terse"),
        ("workflow.run", NAME, "terse"),
        ("agent.execute", None, None),
        ("workflow.run", None, None),
    ] == carried(captured)


def test_a_call_inside_an_agent_counts_for_its_workflow(captured: Captured) -> None:
    """The agent that draws the variant is part of the run, also of the one that it opened itself."""

    @tp.observed_tool
    def tool() -> None:
        """Do nothing."""

    @tp.observed_agent
    def drawing() -> None:
        tp.experiment(NAME, BOTH, unit="user-0")
        tool()

    drawing()
    assert {(NAME, "control")} == {found[1:] for found in carried(captured)}
    assert 3 == len(captured.spans)


def test_a_run_around_runs_does_not_take_part(captured: Captured) -> None:
    """A workflow that runs one workflow for each user is of no variant itself."""
    with tp.workflow("batch"):
        for n in (1, 0):
            with tp.workflow("one"):
                tp.experiment(NAME, BOTH, unit=f"user-{n}")
    assert [
        ("workflow.run", NAME, "terse"),
        ("workflow.run", NAME, "control"),
        ("workflow.run", None, None),
    ] == carried(captured)


def test_runs_to_come_carry_it(captured: Captured) -> None:
    """Outside of a run, everything that starts from then on in the context takes part, each run with its own id."""
    tp.experiment(NAME, BOTH, unit="user-1")
    agent("one")
    agent("two")
    assert {(NAME, "terse")} == {found[1:] for found in carried(captured)}
    assert 2 == len({(span.attributes or {})["request_id"] for span in captured.spans})


def test_a_block_ends_it(captured: Captured) -> None:
    """With ``with`` it is over after the block, also after an error, and the variant around it counts again."""
    outer = tp.experiment(NAME, BOTH, unit="user-0")
    with pytest.raises(ZeroDivisionError), tp.experiment(NAME, BOTH, unit="user-1") as inner:
        agent("inside")
        raise ZeroDivisionError
    agent("outside")
    with outer:
        pass
    agent("after both")
    assert ["terse", "control", None] == [found[2] for found in carried(captured) if found[0] == "agent.execute"]
    assert ("control", "terse") == (outer, inner)


def test_several_experiments_stand_in_the_same_order(captured: Captured) -> None:
    """The names of experiments and variants are joined with commas."""
    with tp.workflow("triage"):
        tp.experiment(NAME, BOTH, unit="user-1")
        tp.experiment("model", ["small", "large"], unit="user-1")
    tags = captured.tags("workflow.run")
    assert "planner-prompt,model" == tags["experiment"]
    assert ["terse", draw("user-1", ["small", "large"], name="model")] == tags["variant"].split(",")


def test_experiments_of_a_run_are_bounded(captured: Captured) -> None:
    """A ninth experiment takes the place of the oldest."""
    with tp.workflow("triage"):
        for n in range(20):
            tp.experiment(f"e{n}", BOTH, unit="user-1")
    assert [f"e{n}" for n in range(12, 20)] == captured.tags("workflow.run")["experiment"].split(",")


def test_log_lines_carry_it(captured: Captured) -> None:
    """Every line of a run that takes part says so, in the flat profile's own fields."""
    tp.experiment(NAME, BOTH, unit="user-1")
    agent("go")
    assert {(NAME, "terse")} == {(line["experiment"], line["variant"]) for line in captured.logs}
    assert {"agent.started", "agent.finished", "workflow.finished"} == {line["event_name"] for line in captured.logs}


async def test_tasks_and_generators_carry_it(captured: Captured) -> None:
    """A task started in the run, and each step of a generator, is beneath it."""

    @tp.observed_workflow
    async def flow() -> Any:
        tp.experiment(NAME, BOTH, unit="user-1", propagate=True)
        await asyncio.create_task(asyncio.to_thread(agent, "in a task"))
        yield baggage.get_baggage(KEY)
        agent("in a later step")
        yield baggage.get_baggage(KEY)

    assert ["terse", "terse"] == [said async for said in flow()]
    assert {(NAME, "terse")} == {found[1:] for found in carried(captured)}
    assert baggage.get_baggage(KEY) is None


def test_threads_carry_it() -> None:
    """A thread that is started where a variant is in force takes part too, where threads carry the context."""
    with capture(propagate_threads=True) as captured, tp.experiment(NAME, BOTH, unit="user-1"):
        thread = threading.Thread(target=agent, args=("in a thread",))
        thread.start()
        thread.join()
    assert {(NAME, "terse")} == {found[1:] for found in carried(captured)}


def test_baggage_says_it_on_request_only(captured: Captured) -> None:
    """Without ``propagate`` baggage stays as it is; with it, another service of ours takes part in the experiment."""
    with tp.experiment(NAME, BOTH, unit="user-1"):
        assert {} == dict(baggage.get_all())
    headers: dict[str, str] = {}
    with tp.experiment(NAME, BOTH, unit="user-1", propagate=True):
        W3CBaggagePropagator().inject(headers)
        with tp.workflow("triage"):
            assert {KEY: "terse"} == dict(baggage.get_all())
    assert {} == dict(baggage.get_all())
    token = attach(extract_headers(headers.items()))
    agent("elsewhere")
    detach(token)
    assert (NAME, "terse") == carried(captured)[-1][1:]


def test_the_unit_stays_here() -> None:
    """What the unit is called is on no span, log line or metric, nor in the baggage."""
    with capture() as captured:
        with tp.workflow("triage"):
            tp.experiment(NAME, BOTH, unit="ada@example.org", propagate=True)
            assert "ada" not in str(dict(baggage.get_all()))
            agent("go")
        seen = f"{[span.to_json() for span in captured.spans]}{captured.logs}{captured.prometheus_text}"
    assert "terse" in seen or "control" in seen
    assert "ada" not in seen


def test_it_draws_without_instrumentation() -> None:
    """An application that is not observed gets its variants all the same."""
    assert "terse" == tp.experiment(NAME, BOTH, unit="user-1")


def test_our_own_failure_costs_the_caller_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the variant cannot take effect it is drawn all the same, and the failure is counted."""

    def fail(*_: object) -> None:
        raise RuntimeError

    with capture(reraise=False) as captured:
        monkeypatch.setattr(experiments, "with_variant_ahead", fail)
        with tp.experiment(NAME, BOTH, unit="user-1") as variant:
            agent("go")
        assert "terse" == variant
        assert 1 <= captured.handle.health().errors_swallowed["experiment"]


# --- metrics ------------------------------------------------------------------------------------


def test_families_count_runs_by_variant(captured: Captured) -> None:
    """Each run counts once, under its outcome; a run within a run of the same variant is no further one."""
    with tp.experiment(NAME, BOTH, unit="user-1"):
        with tp.workflow("triage"), tp.workflow("inner"):
            pass
        with tp.workflow("triage") as run:
            run.fail("no")
    agent("without")
    registry = captured.metrics.registry
    labels = {"experiment": NAME, "variant": "terse"}
    runs = "taskpilot_experiment_runs_total"
    assert [1.0, 1.0] == [registry.get_sample_value(runs, {**labels, "outcome": each}) for each in ("success", "error")]
    assert 2.0 == registry.get_sample_value("taskpilot_experiment_duration_seconds_count", labels)


def test_cost_of_a_variant_is_exact(captured: Captured, client: Any) -> None:
    """What its runs cost is what their calls cost."""
    with tp.experiment(NAME, BOTH, unit="user-1"):
        for _ in range(3):
            with tp.workflow("triage"):
                client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "hello"}])
    spent = captured.metrics.registry.get_sample_value(
        "taskpilot_experiment_cost_usd_total", {"experiment": NAME, "variant": "terse"}
    )
    assert 0 < captured.golden_signals().total_cost_usd == spent
