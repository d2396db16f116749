"""Exceptions of the public API.

TaskpilotError
├── ConfigurationError (also ValueError)    a setting or argument of ours is wrong
├── NotInstrumentedError (also RuntimeError)  an answer was asked for before instrument()
├── DeliveryError (also ConnectionError)    what was to be sent at once could not be delivered
└── BlockedError                            a call was refused on purpose: the outcome is ``blocked``
"""


class TaskpilotError(Exception):
    """Base of every exception that this library raises on purpose."""


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
