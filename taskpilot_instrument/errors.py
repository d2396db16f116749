"""Exceptions of the public API.

TaskpilotError
├── ConfigurationError (also ValueError)    a setting or argument of ours is wrong
├── NotInstrumentedError (also RuntimeError)  an answer was asked for before instrument()
├── DeliveryError (also ConnectionError)    what was to be sent at once could not be delivered
├── LedgerError (also ConnectionError)      the ledger cannot be read or written
├── SourceError (also ConnectionError)      the Prometheus that was asked has no answer
└── BlockedError                            a call was refused on purpose: the outcome is ``blocked``
    ├── BudgetExceededError                 it might have cost more than a budget has left
    ├── TokenLimitError                     it went beyond a token limit
    ├── PolicyViolationError                a policy denied it
    ├── GuardrailBlockedError               a guardrail refused its input or output
    └── RunawayError                        the run went in circles
"""

from datetime import datetime
from decimal import Decimal
from typing import Any


class TaskpilotError(Exception):
    """Base of every exception that this library raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Those that take more than a message could not come back from another process otherwise.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[TaskpilotError], args: tuple[Any, ...], fields: dict[str, Any]) -> TaskpilotError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigurationError(TaskpilotError, ValueError):
    """Say which setting or argument is wrong, and what would be right."""


class NotInstrumentedError(TaskpilotError, RuntimeError):
    """Say that ``instrument()`` has to be called first."""


class DeliveryError(TaskpilotError, ConnectionError):
    """Say that what was asked to be sent at once did not arrive, and why."""


class BlockedError(TaskpilotError):
    """Refuse an operation on purpose; it ends with the outcome ``blocked``, not ``error``.

    Raise it (or a subclass of your own) inside a workflow, agent or tool that must not go on.
    """


class LedgerError(TaskpilotError, ConnectionError):
    """Say that the ledger cannot be read or written, and why."""


class SourceError(TaskpilotError, ConnectionError):
    """Say why the Prometheus that golden signals were asked of has no answer, or none that is whole."""


class BudgetExceededError(BlockedError):
    """Say which budget a call might have overspent; raised before any request is sent.

    :param budget: the budget's name.
    :param spent_usd: exact USD spent and reserved when the call was refused; None where the ledger could not say.
    :param limit_usd: exact USD that the window allows.
    :param resets_at: when the window ends, with its time zone; None for a budget that never resets.
    """

    def __init__(
        self, message: str, *, budget: str, spent_usd: Decimal | None, limit_usd: Decimal, resets_at: datetime | None
    ) -> None:
        super().__init__(message)
        self.budget = budget
        self.spent_usd = spent_usd
        self.limit_usd = limit_usd
        self.resets_at = resets_at


class TokenLimitError(BlockedError):
    """Say which token limit a call or run went beyond."""


class PolicyViolationError(BlockedError):
    """Say which policy denied an input, a tool call or an output, and why.

    :param policy: the policy's name.
    :param reason: why it denied.
    """

    def __init__(self, message: str, *, policy: str, reason: str) -> None:
        super().__init__(message)
        self.policy = policy
        self.reason = reason


class GuardrailBlockedError(BlockedError):
    """Say which guardrail refused an input or output, and why.

    :param guardrail: the guardrail's name.
    :param direction: ``input`` or ``output``.
    :param reason: why it refused.
    """

    def __init__(self, message: str, *, guardrail: str, direction: str, reason: str) -> None:
        super().__init__(message)
        self.guardrail = guardrail
        self.direction = direction
        self.reason = reason


class RunawayError(BlockedError):
    """Say in what way a run went in circles."""
