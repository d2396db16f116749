"""``experiment(...)``: give each unit its variant, and let everything beneath carry it."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from opentelemetry import baggage
from opentelemetry.context import Context, attach, get_current

from taskpilot_instrument import semconv
from taskpilot_instrument._assignment import Assigned, assign, design_of
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument.context import remote_run, with_variant, with_variant_ahead
from taskpilot_instrument.semconv import Kind

#: Under this and the experiment's name the variant stands in the baggage; our own middleware reads it there.
_BAGGAGE: Final = f"{semconv.SERVICE_NAME}.{semconv.EXPERIMENT}."


class Variant(str):
    """The name of the variant that a unit got: text like any other, and a block that ends its effect.

    .. code-block:: python

        with experiment("planner-prompt", ["control", "terse"], unit=user_id) as variant:
            prompt = PROMPTS[variant]
    """

    __slots__ = ("_ahead", "_before", "_experiment", "_propagate", "_said_before")

    _experiment: str
    _propagate: bool
    #: Whether it was drawn where no run was open, for those to come.
    _ahead: bool
    _before: str | None
    _said_before: object

    def __new__(cls, assigned: Assigned, *, propagate: bool) -> Self:
        """Return the name alone; :func:`experiment` makes it take effect."""
        made = super().__new__(cls, assigned)
        made._experiment, made._propagate, made._ahead = assigned.design.experiment, propagate, False
        made._before = made._said_before = None
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let what starts from here on take part no longer; a run that took part has taken part."""
        try:
            if self._ahead:
                attach(with_variant_ahead(get_current(), self._experiment, self._before))
            if self._propagate:
                _say(self._experiment, self._said_before)
        except Exception as error:
            swallow("experiment", error)

    def _take_effect(self, assigned: Assigned) -> None:
        operation, name = current(), self._experiment
        if operation is not None:
            _take_part(operation, name, assigned)
        else:
            outer = get_current()
            remote = remote_run(outer)
            self._ahead, self._before = True, dict(remote.ids.variants).get(name) if remote is not None else None
            attach(with_variant_ahead(outer, name, assigned))
        if self._propagate:
            self._said_before = baggage.get_baggage(_BAGGAGE + name)
            _say(name, str(assigned))


def experiment(
    name: str,
    variants: Sequence[str],
    *,
    unit: str | int | UUID,
    weights: Sequence[float] | None = None,
    propagate: bool = False,
) -> Variant:
    """Return the variant of an experiment that a unit gets, and let everything beneath carry it.

    The same unit gets the same variant every time, in every process: it is drawn by a hash of the experiment's name,
    the variant's and the unit (BLAKE2b, weighted rendezvous hashing), so nothing has to be stored, and other weights
    move as few units as they can. What the unit is called stays here: it is on no span, log line or metric.

    Inside a run, its workflow run and everything that starts beneath it from now on have the tags ``experiment`` and
    ``variant``, and the run counts for the variant. Outside of one, so do the runs that start from now on in this
    context (thread or task); ``with`` ends that with its block. In the run of another variant of the same experiment,
    the latest call counts. A run takes part in eight experiments at most, the latest ones.

    :param name: of the experiment, a label of its metrics: letters, digits, dots, hyphens and underscores.
    :param variants: 2 to 10 names; the first is what the others are compared with.
    :param unit: what the variant stays with: a user, session or request id.
    :param weights: one number for each variant, such as ``[9, 1]``; equal ones by default, 0 takes no further units.
    :param propagate: also put the variant into OpenTelemetry's baggage, as ``taskpilot.experiment.<name>``, which
        whatever propagates baggage sends with every request.
    :raises ConfigurationError: for an argument that is not valid, naming it.
    """
    assigned = assign(design_of(name, variants, weights), unit)
    variant = Variant(assigned, propagate=propagate)
    try:
        variant._take_effect(assigned)  # noqa: SLF001 - one of us
    except Exception as error:
        swallow("experiment", error)
    return variant


def _take_part(operation: Operation, name: str, assigned: Assigned) -> None:
    """Note the variant on an operation and what is around it, up to the workflow run that all of it belongs to."""
    around: Operation | None = operation
    while around is not None:
        around.ids = with_variant(around.ids, name, assigned)
        around = around.parent if around.kind is not Kind.WORKFLOW else None


def _say(name: str, said: object) -> None:
    """Put a variant into the current baggage, or take it away where it is None."""

    def saying(context: Context) -> Context:
        key = _BAGGAGE + name
        return baggage.remove_baggage(key, context) if said is None else baggage.set_baggage(key, said, context)

    operation = current()
    if operation is not None:  # a generator's next step begins with this
        operation.context = saying(operation.context)
    attach(saying(get_current()))
