"""What users think of results: votes that replace each other, counted where their run is counted."""

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from taskpilot_instrument import semconv
from taskpilot_instrument._history import History
from taskpilot_instrument._records import Event
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.sinks.ledger import Ledger, Vote
from taskpilot_instrument.typing import Clock

_LONGEST_ID: Final = 200
_LONGEST_COMMENT: Final = 4_000
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_VERSION: Final = "tp1"


class Receipt(NamedTuple):
    """What became of a vote.

    :param id: give it again to change the vote.
    :param linked: True where the run was found that it speaks of.
    :param replaced: True where it took the place of an earlier vote.
    """

    id: str
    linked: bool
    replaced: bool


class Feedback:
    """Take votes.

    :param note: tells every sink.
    """

    def __init__(self, ledger: Ledger, history: History, clock: Clock, note: Callable[[Event], None]) -> None:
        self.ledger = ledger
        self._history = history
        self._clock = clock
        self._note = note

    def record(
        self,
        correct: bool,  # noqa: FBT001 - a verdict is a yes or no
        *,
        request_id: str | None = None,
        trace_id: str | None = None,
        user: str | None = None,
        comment: str | None = None,
        score: float | None = None,
        id: str | None = None,  # noqa: A002 - the field's own word
    ) -> Receipt:
        """Record a user's verdict; see :meth:`Instrumentation.record_feedback`."""
        _check(correct, request_id, trace_id, user, comment, score, id)
        link = self._history.find(request_id=request_id, trace_id=trace_id)
        name = id or _default_id(request_id or (link.request_id if link is not None else trace_id) or "", user)
        vote = Vote(
            name,
            request_id or (link.request_id if link is not None else None),
            trace_id or (link.trace_id if link is not None else None),
            correct,
            user,
            None if comment is None else comment[:_LONGEST_COMMENT],
            score,
            self._clock.epoch_ns() / 1e9,
            None if link is None else link.agent,
            None if link is None else link.workflow,
            link is not None,
        )
        before = self.ledger.put_vote(vote)
        if before is not None and before._replace(at_s=vote.at_s) == vote:
            return Receipt(name, link is not None, replaced=True)
        details = {
            semconv.REQUEST_ID: vote.request_id,
            semconv.F_TRACE_ID: vote.trace_id,
            semconv.F_SPAN_ID: None if link is None else link.span_id,
            semconv.AGENT: vote.agent,
            semconv.WORKFLOW: vote.workflow,
            semconv.MODEL: None if link is None else link.model,
            semconv.L_VERDICT: _verdict(correct),
            "replaces": None if before is None else _verdict(before.correct),
            "score": score,
            "comment": vote.comment,
            "variants": () if link is None else link.variants,
        }
        self._note(
            Event(
                semconv.E_FEEDBACK_RECORDED,
                semconv.CATEGORY_AUDIT,
                "INFO",
                f"feedback: {_verdict(correct)}{'' if link is not None else ', of a run that is not known'}",
                decision=_verdict(correct),
                details=details,
            )
        )
        return Receipt(name, link is not None, replaced=before is not None)


def _verdict(correct: bool) -> str:  # noqa: FBT001 - as above
    return semconv.VERDICT_CORRECT if correct else semconv.VERDICT_INCORRECT


def _default_id(run: str, user: str | None) -> str:
    return hashlib.blake2b(json.dumps([run, user]).encode(), digest_size=16).hexdigest()


def _check(
    correct: object,
    request_id: object,
    trace_id: object,
    user: object,
    comment: object,
    score: object,
    id: object,  # noqa: A002 - as above
) -> None:
    if not isinstance(correct, bool):
        raise ConfigurationError(f"record_feedback(correct=…) takes True or False, not {correct!r}")
    if request_id is None and trace_id is None:
        raise ConfigurationError(
            "record_feedback() needs the run that it speaks of: give request_id, trace_id or token"
        )
    for name, value in (("request_id", request_id), ("user", user), ("id", id)):
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= _LONGEST_ID):
            raise ConfigurationError(f"record_feedback({name}=…) takes text of 1 to {_LONGEST_ID} characters")
    if trace_id is not None and not (isinstance(trace_id, str) and _TRACE_ID.fullmatch(trace_id)):
        raise ConfigurationError("record_feedback(trace_id=…) takes 32 lower-case hexadecimal digits")
    if comment is not None and not isinstance(comment, str):
        raise ConfigurationError("record_feedback(comment=…) takes text")
    if score is not None and not (
        isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    ):
        raise ConfigurationError(f"record_feedback(score=…) takes a finite number, not {score!r}")


# --- tokens -------------------------------------------------------------------------------------


def make_token(key: str, request_id: str, *, lifetime_s: float, now_s: float | None = None) -> str:
    """Return a signed token that lets its bearer vote on one run, until it expires.

    :param key: secret, shared by all processes that make and take tokens.
    :param lifetime_s: seconds.
    """
    expires = int((time.time() if now_s is None else now_s) + lifetime_s)
    payload = _encode(json.dumps([request_id, expires]).encode())
    return f"{_VERSION}.{payload}.{_signature(key, payload)}"


def read_token(key: str, token: str, *, now_s: float | None = None) -> str:
    """Return the request id that a token speaks of.

    :raises ConfigurationError: for a token that is not ours, was changed or has expired.
    """
    version, _, rest = token.partition(".")
    payload, _, signature = rest.partition(".")
    expected = _signature(key, payload)
    if version != _VERSION or not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
        raise ConfigurationError("the feedback token is not valid: ask for a new one with feedback_token(run)")
    try:
        request_id, expires = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error) as error:
        raise ConfigurationError("the feedback token cannot be read") from error
    if (time.time() if now_s is None else now_s) >= expires:
        raise ConfigurationError("the feedback token has expired: ask for a new one with feedback_token(run)")
    return str(request_id)


def _signature(key: str, payload: str) -> str:
    digest = hmac.new(key.encode(), f"{_VERSION}.{payload}".encode("utf-8", "replace"), hashlib.sha256).digest()
    return _encode(digest)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
