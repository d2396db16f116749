"""Push a registry to a Prometheus Pushgateway, for jobs that end before anybody scrapes them."""

from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from prometheus_client import CollectorRegistry, pushadd_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler

from taskpilot_instrument.errors import ConfigurationError, DeliveryError
from taskpilot_instrument.redaction import cut, redact

_ANSWER_LIMIT: Final = 300


def push(
    registry: CollectorRegistry, gateway: str, job: str, grouping_key: Mapping[str, str] | None, timeout_s: float
) -> None:
    """Replace, on the gateway, the families of this registry under the job and its grouping key.

    :param gateway: URL, with user and password in it where the gateway asks for them.
    :param job: value of the ``job`` label.
    :param grouping_key: further labels that tell this job's metrics from others'.
    :param timeout_s: how long to wait for the gateway, in seconds.
    :raises ConfigurationError: for an argument that is not valid.
    :raises DeliveryError: where the gateway cannot be reached or refuses.
    """
    labels = dict(grouping_key or {})
    parts = _checked(gateway, job, labels, timeout_s)
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        pushadd_to_gateway(address, job, registry, labels, timeout_s, _handler(parts))
    except HTTPError as refusal:
        with refusal:
            answer = refusal.read(_ANSWER_LIMIT * 4).decode("utf-8", "replace")
        said = cut(redact(" ".join(answer.split())), _ANSWER_LIMIT)
        raise DeliveryError(f"the Pushgateway at {address} refused the metrics: HTTP {refusal.code} {said}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DeliveryError(
            f"the metrics were not pushed to {address} ({type(reason).__name__}: {reason}); is a Pushgateway running?"
        ) from error


def _checked(gateway: str, job: str, labels: Mapping[str, str], timeout_s: float) -> SplitResult:
    try:
        parts = urlsplit(gateway)
        complete = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that make no sense
        complete = False
    if not complete or parts.query or parts.fragment:
        raise ConfigurationError(
            f"gateway={redact(gateway)!r}: expected the URL of a Pushgateway, such as http://127.0.0.1:9091"
        )
    if not job.strip():
        raise ConfigurationError(f"job={job!r}: expected the name of the job, such as 'nightly-triage'")
    for name, value in {"job": job, **labels}.items():
        if value in {".", ".."}:  # they become steps of the URL's path, where dots mean something else
            raise ConfigurationError(f"{name}={value!r}: expected a value that is more than dots")
    if not timeout_s > 0:
        raise ConfigurationError(f"timeout_s={timeout_s!r}: expected seconds, more than 0")
    return parts


def _handler(parts: SplitResult) -> Callable[..., Callable[[], None]]:
    if parts.username is None:
        return default_handler
    user, password = unquote(parts.username), unquote(parts.password or "")

    def authorized(url: str, method: str, timeout: float | None, headers: Any, data: bytes) -> Callable[[], None]:
        return basic_auth_handler(url, method, timeout, headers, data, user, password)

    return authorized
