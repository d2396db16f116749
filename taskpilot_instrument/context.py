"""Ids that travel with a run: request, session, user.

They live on the current operation, so whatever carries the OpenTelemetry context (threads, tasks,
executors) carries them too.
"""

import sys
from collections.abc import Callable
from random import getrandbits
from typing import Final, NamedTuple

from opentelemetry.context import Context, create_key, set_value

_REQUEST_ID: Final = "request_id"
#: Under this name structlog keeps the context variable.
_BOUND_REQUEST_ID: Final = f"structlog_{_REQUEST_ID}"


def random_request_id() -> str:
    """Return a new id such as ``req-5f1c…``; `random` reseeds itself after a fork."""
    return f"req-{getrandbits(64):016x}"


#: Makes request ids; the testing kit puts a counter here.
request_id_factory: Callable[[], str] = random_request_id


def new_request_id() -> str:
    """Return a new request id: that bound in structlog's contextvars, else a made one."""
    return _bound_request_id() or request_id_factory()


class Ids(NamedTuple):
    """The ids of one workflow run; nested operations share the same object."""

    request_id: str
    session_id: str | None = None
    user_id: str | None = None
    #: Experiments that the run takes part in, each with the variant that it was given.
    variants: tuple[tuple[str, str], ...] = ()


#: Experiments that one run takes part in; a further one takes the place of the oldest.
MOST_EXPERIMENTS: Final = 8


def with_variant(ids: Ids, experiment: str, variant: str | None) -> Ids:
    """Return the ids of a run that takes part in one more experiment, or under another variant of it.

    :param variant: None where it takes part no longer.
    """
    pairs = dict(ids.variants)
    if variant is not None:
        pairs[experiment] = variant
    else:
        pairs.pop(experiment, None)
    return ids._replace(variants=tuple(pairs.items())[-MOST_EXPERIMENTS:])


def experiments_of(ids: Ids) -> tuple[str, str]:
    """Return the experiments of a run and its variants of them as text, for tags and log fields.

    Of several the names stand in the same order with commas between them: what searches tags wants plain text.
    """
    return ",".join([experiment for experiment, _ in ids.variants]), ",".join([variant for _, variant in ids.variants])


class RemoteRun(NamedTuple):
    """A run in another process that this one takes part in, or what runs that are still to come shall have.

    :param ids: without a request id each of them makes its own.
    :param workflow: its workflow's name; None where only the ids are known.
    """

    ids: Ids
    workflow: str | None


_REMOTE: Final = create_key("taskpilot-remote-run")


def with_remote_run(context: Context, ids: Ids, workflow: str | None) -> Context:
    """Return a context in which operations without a parent here belong to a run elsewhere."""
    return set_value(_REMOTE, RemoteRun(ids, workflow), context)


def remote_run(context: Context) -> RemoteRun | None:
    """Return the run elsewhere that a context belongs to."""
    found = context.get(_REMOTE)
    return found if isinstance(found, RemoteRun) else None


def with_variant_ahead(context: Context, experiment: str, variant: str | None) -> Context:
    """Return a context in which runs that are still to come take part in an experiment; see :func:`with_variant`."""
    ids, workflow = remote_run(context) or RemoteRun(Ids(""), None)
    return with_remote_run(context, with_variant(ids, experiment, variant), workflow)


def new_ids(
    parent: Ids | None,
    *,
    request_id: str | None = None,
    session_id: str | None = None,
    user_id: str | None = None,
) -> Ids:
    """Combine what the caller gave with what the run around it has.

    :param parent: ids of the enclosing run, inherited where nothing else is given.
    :param request_id: else the parent's, else the one bound in structlog's contextvars, else a new one.
    """
    if parent is not None:
        if request_id is None and session_id is None and user_id is None and parent.request_id:
            return parent
        return Ids(
            request_id or parent.request_id or new_request_id(),
            session_id or parent.session_id,
            user_id or parent.user_id,
            parent.variants,
        )
    return Ids(request_id or new_request_id(), session_id, user_id)


def _bound_request_id() -> str | None:
    # Whoever bound one has imported it; we do not, because it takes as long as everything else of ours together.
    structlog = sys.modules.get("structlog.contextvars")
    if structlog is None or _BOUND_REQUEST_ID not in getattr(structlog, "_CONTEXT_VARS", (_BOUND_REQUEST_ID,)):
        return None  # nobody ever bound one; asking would cost a microsecond
    bound = structlog.get_contextvars().get(_REQUEST_ID)
    return bound if isinstance(bound, str) and bound else None
