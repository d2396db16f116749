"""Ask for the usage of a stream whose caller did not, and know when a host does not like that."""

import copy
import logging
from collections.abc import Mapping
from typing import Any, Final

from taskpilot_instrument._recorder import Recorder

_log = logging.getLogger("taskpilot_instrument")

#: Hosts known to refuse a request with ``stream_options``.
_REFUSING: Final = frozenset({"api.mistral.ai"})
#: Statuses with which a host says that it does not know a parameter.
_NOT_UNDERSTOOD: Final = frozenset({400, 404, 422})
#: Hosts that have refused; bounded, for hosts may be made up.
_MOST_HOSTS: Final = 100
_refused: set[str] = set()


def asking_for_usage(options: Any, host: str | None, recorder: Recorder) -> Any:
    """Return a copy of the request's options that asks for the usage; None where that is not to be done.

    :param host: where the request goes.
    """
    body = options.json_data
    if not isinstance(body, dict) or host is None or host in _REFUSING or host in recorder.include_usage_except:
        return None
    extra = options.extra_json
    given = extra if isinstance(extra, Mapping) else {}
    if host in _refused or "stream_options" in body or "stream_options" in given or _is_raw(options):
        return None
    asking = copy.copy(options)
    asking.json_data = {**body, "stream_options": {"include_usage": True}}
    return asking


def _is_raw(options: Any) -> bool:
    """Tell whether the caller gets at the body, and may parse it: a chunk could not be hidden there."""
    headers = options.headers
    return isinstance(headers, Mapping) and "X-Stainless-Raw-Response" in headers


def may_refuse_usage(error: Exception) -> bool:
    """Tell whether an error may mean that the host does not know what we added to the request."""
    if getattr(error, "status_code", None) not in _NOT_UNDERSTOOD:
        return False
    # Hosts say it in their message, or anywhere in a body of a shape of their own.
    return "stream_options" in f"{error} {getattr(error, 'body', None)}"


def remember_refusal(host: str | None) -> None:
    """Do not ask this host again: without what we added it took the same request."""
    if host is not None and host not in _refused and len(_refused) < _MOST_HOSTS:
        _refused.add(host)
        _log.warning(
            "taskpilot_instrument: %s refuses stream_options; the request was sent again without, and the usage of "
            "its streams stays unknown. Name it in include_usage_except to spare the attempt.",
            host,
        )
