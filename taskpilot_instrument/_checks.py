"""Which policies and guardrails speak of an agent run or a tool call: the controls of an instrumentation."""

from collections.abc import Callable
from typing import Any, Final

from taskpilot_instrument._decisions import Side
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._inspection import Inspection, Plan, ToolWatch, asking
from taskpilot_instrument._operation import Operation
from taskpilot_instrument._subject import Moment
from taskpilot_instrument.guardrails import Direction, Guardrail, check_of
from taskpilot_instrument.policy import Policy
from taskpilot_instrument.semconv import Kind

#: Names of agents and tools whose answer is kept; beyond so many it is found anew each time.
_MOST_PLANS: Final = 4096
_UNKNOWN: Final = Plan("agent_input", None, None, (), content=False)
_DIRECTIONS: Final[dict[Moment, Direction]] = {"agent_input": "input", "agent_output": "output"}


class Checks:
    """Ask policies and guardrails around agent runs, and policies before tool calls.

    :param policies: in the order in which they are asked.
    :param guardrails: asked after the policies, in this order.
    :param watches: hear of tool calls first.
    :param content: let captured text into the decision log.
    """

    where = "checks"

    def __init__(
        self,
        policies: tuple[Policy, ...] = (),
        guardrails: tuple[Guardrail, ...] = (),
        watches: tuple[ToolWatch, ...] = (),
        *,
        content: bool = False,
    ) -> None:
        self._policies = policies
        self._guardrails = guardrails
        self._watches = watches
        self._content = content
        self._plans: dict[tuple[Kind, str | None, str], Plan | None] = {}

    def around(
        self, operation: Operation, fn: Callable[..., Any], arguments: Callable[[], Any], /
    ) -> Callable[..., Any] | None:
        """Return ``fn`` with its checks around it; None where nobody speaks of it."""
        try:
            if asking.get():
                return None
            key = (operation.kind, operation.agent_name, operation.name)
            plan = self._plans.get(key, _UNKNOWN)
            if plan is _UNKNOWN:
                plan = self._plan(*key)
            return None if plan is None else Inspection(plan, operation, fn, arguments).body()
        except Exception as error:
            swallow(self.where, error)
            return None

    def _plan(self, kind: Kind, agent: str | None, name: str) -> Plan | None:
        plan: Plan | None
        if kind is Kind.TOOL:
            before, after, watches = self._side("tool_call", agent, name), None, self._watches
            plan = Plan("tool_call", before, after, watches, self._content)
        else:
            before, after = self._side("agent_input", agent, None), self._side("agent_output", agent, None)
            plan = Plan("agent_input", before, after, (), self._content)
        if plan.before is None and plan.after is None and not plan.watches:
            plan = None
        if len(self._plans) < _MOST_PLANS:
            self._plans[kind, agent, name] = plan
        return plan

    def _side(self, moment: Moment, agent: str | None, tool: str | None) -> Side | None:
        policies = tuple(policy for policy in self._policies if policy.speaks_of(moment, agent, tool))
        direction = _DIRECTIONS.get(moment)
        guardrails = self._guardrails if direction is not None else ()
        checks = tuple(
            check
            for guardrail in guardrails
            if direction is not None and (guardrail.agents is None or agent in guardrail.agents)
            for check in (check_of(guardrail, direction),)
            if check is not None
        )
        return Side(policies, checks) if policies or checks else None
