"""Ask a Prometheus over its HTTP API, within a time limit, and say clearly why where it cannot answer."""

import json
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any, Final, NamedTuple, TypeVar
from urllib.error import HTTPError
from urllib.parse import SplitResult, unquote, urlencode, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from taskpilot_instrument._addresses import PROMETHEUS_URL, prometheus_address
from taskpilot_instrument.errors import ConfigurationError, SourceError
from taskpilot_instrument.redaction import cut, redact, redact_address

#: Bytes of one answer; what is longer is refused rather than kept in memory.
_MOST_BYTES: Final = 256 * 1024 * 1024
_PIECE: Final = 256 * 1024
_SAID: Final = 300
Read = TypeVar("Read")


class Series(NamedTuple):
    """One series of an answer.

    :param points: time in seconds since 1970 and value, oldest first; one of an instant vector.
    """

    labels: dict[str, str]
    points: list[tuple[float, float]]


class Rule(NamedTuple):
    """A rule that is loaded.

    :param type: ``alerting`` or ``recording``.
    :param problem: why it cannot be evaluated; None where it can.
    """

    name: str
    type: str
    query: str
    is_firing: bool
    problem: str | None


class _NoRedirect(HTTPRedirectHandler):
    """Follow nothing: the credentials would go along to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER: Final = build_opener(_NoRedirect)


class Prometheus:
    """A Prometheus that one question is put to.

    :param url: its address, with a path where it stands below one. User and password in it are sent as basic
        authentication; its query narrows the question down: ``http://prometheus:9090?job=taskpilot``.
    :param token: bearer token that it asks for.
    :param timeout_s: how long all its answers together may take, in seconds.
    :param given_as: what the address was given as, for complaints.
    :raises ConfigurationError: for an address that is none, user and token at once, or a time that is none.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout_s: float = 30.0, given_as: str = "source"
    ) -> None:
        try:
            parts, self.matchers = prometheus_address(url)
        except (ValueError, AttributeError):
            shown = redact_address(str(url))
            raise ConfigurationError(f"{given_as}={shown!r}: expected {PROMETHEUS_URL}") from None
        if not timeout_s > 0:
            raise ConfigurationError(f"source_timeout_s={timeout_s!r}: expected seconds, more than 0")
        if token is not None and parts.username is not None:
            raise ConfigurationError(
                f"{given_as}= has a user in it, and there is a source_token: leave one of them out"
            )
        #: The address as it may be shown.
        self.address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")).rstrip("/")
        self._headers = {"Accept": "application/json", **_credentials(parts, token)}
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s

    def query(self, expr: str, at: float | None = None) -> list[Series]:
        """Return what an expression comes to.

        :param at: seconds since 1970; the server's own time where it is not given.
        :raises SourceError: where no answer comes in time, or none that is whole.
        """
        form = {"query": expr, "timeout": f"{max(1, round(self._left() * 1000))}ms"}
        if at is not None:
            form["time"] = f"{at:.3f}"
        return self._ask("query", _result, form)

    def rules(self) -> list[Rule]:
        """Return the rules that are loaded.

        :raises SourceError: where no answer comes in time, or none that is whole.
        """
        return self._ask("rules", _rules)

    # --- one request ----------------------------------------------------------------------------

    def _ask(self, what: str, read: Callable[[Any], Read], form: Mapping[str, str] | None = None) -> Read:
        body = self._send(what, None if form is None else urlencode(form).encode(), self._left())
        try:
            answer = json.loads(body)
            if answer["status"] == "success" and not answer.get("warnings"):
                return read(answer["data"])
            problem = answer.get("error") or "; ".join(answer["warnings"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError(f"{self.address} did not answer as a Prometheus does: is it the right address?") from None
        raise SourceError(f"{self.address} has no whole answer: {_said(problem)}")

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        return left

    def _too_slow(self) -> SourceError:
        return SourceError(
            f"{self.address} took longer than {self._timeout_s:g} s: ask for a shorter window, or allow more with "
            f"source_timeout_s"
        )

    def _send(self, what: str, form: bytes | None, timeout_s: float) -> bytes:
        request = Request(f"{self.address}/api/v1/{what}", form, self._headers)  # noqa: S310 - http(s), as checked
        try:
            with _OPENER.open(request, timeout=timeout_s) as response:
                return self._read(response)
        except HTTPError as refusal:
            with refusal:
                raise self._refused(refusal) from None
        except TimeoutError:
            raise self._too_slow() from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise self._too_slow() from None
            raise SourceError(
                f"{self.address} cannot be asked ({type(reason).__name__}: {_said(reason)}); is a Prometheus there?"
            ) from None

    def _read(self, response: HTTPResponse) -> bytes:
        # The socket's timeout is for each piece: one that drips would never end.
        pieces, size = [], 0
        while piece := response.read1(_PIECE):
            self._left()
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_BYTES:
                raise SourceError(f"{self.address} answers with too much: ask for a shorter window")
        return b"".join(pieces)

    def _refused(self, refusal: HTTPError) -> SourceError:
        if refusal.code in {401, 403}:
            return SourceError(
                f"{self.address} refused the credentials (HTTP {refusal.code}): give a source_token, or user and "
                f"password in the URL"
            )
        try:
            body = refusal.read(_PIECE)
            problem = json.loads(body)["error"]
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            problem = f"{refusal.reason}; is a Prometheus there? A page of ours is asked with --url"
        return SourceError(f"{self.address} answered HTTP {refusal.code}: {_said(problem)}")


def _credentials(parts: SplitResult, token: str | None) -> dict[str, str]:
    if token is not None:
        return {"Authorization": f"Bearer {token}"}
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def _result(data: dict[str, Any]) -> list[Series]:
    result = data["result"]
    return [Series({}, [_point(result)])] if data["resultType"] == "scalar" else list(map(_series, result))


def _rules(data: dict[str, Any]) -> list[Rule]:
    return [
        Rule(
            rule["name"],
            rule["type"],
            rule["query"],
            rule.get("state") == "firing",
            str(rule.get("lastError", "")) if rule.get("health") == "err" else None,
        )
        for group in data["groups"]
        for rule in group["rules"]
    ]


def _series(found: dict[str, Any]) -> Series:
    values = found["values"] if "values" in found else [found["value"]]
    return Series(found["metric"], [_point(value) for value in values])


def _point(found: list[Any]) -> tuple[float, float]:
    moment, value = found
    return float(moment), float(value)


def _said(problem: object) -> str:
    return cut(redact(" ".join(str(problem).split())), _SAID)
