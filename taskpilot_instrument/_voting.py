"""What users say of results: recorded through the handle, by request, trace or token."""

from typing import TYPE_CHECKING

from taskpilot_instrument import _forks
from taskpilot_instrument._assembly import Parts
from taskpilot_instrument._collector import finish_orphans
from taskpilot_instrument._recorder import Recorder
from taskpilot_instrument._records import Event
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.settings import Settings
from taskpilot_instrument.typing import Clock

if TYPE_CHECKING:
    from taskpilot_instrument.feedback import Feedback, Receipt
    from taskpilot_instrument.workflow import WorkflowRun


class Voting:
    """Record votes; where they are kept is made when the first one comes."""

    settings: Settings
    parts: Parts
    _clock: Clock
    _recorder: Recorder

    def __init__(self) -> None:
        self._votes: Feedback | None = None
        self._votes_lock = _forks.lock()

    def record_feedback(
        self,
        correct: bool,  # noqa: FBT001 - a verdict is a yes or no
        *,
        request_id: str | None = None,
        trace_id: str | None = None,
        token: str | None = None,
        user: str | None = None,
        comment: str | None = None,
        score: float | None = None,
        id: str | None = None,  # noqa: A002 - the field's own word
    ) -> "Receipt":
        """Record whether a user found a result correct, also hours later and in another process.

        It counts under the agent and workflow of the run, which is looked up here and in the ledger (set ``ledger`` so
        that processes share it), and appears in the run's trace. A vote with the same id replaces the one before;
        a replay changes nothing. A run that nobody knows is accepted, and counts without an agent.

        :param correct: whether the result was right.
        :param request_id: of the run; or its ``trace_id``, 32 hexadecimal digits.
        :param token: of :meth:`feedback_token`, in place of the ids: what whoever votes was given, and cannot change.
        :param user: who votes; with the request id the default ``id``, so that each user has one vote on a run.
        :param comment: kept in the ledger; on a span only where content is captured on events.
        :param score: any finite number; kept beside the verdict.
        :param id: names the vote.
        :raises ConfigurationError: for an argument that is not valid, and a token that is not ours or has expired.
        :raises LedgerError: where the ledger cannot be reached; nothing was recorded then.
        """
        if token is not None:
            request_id = self._run_of(token, (request_id, trace_id))
        finish_orphans()
        return self._feedback().record(
            correct, request_id=request_id, trace_id=trace_id, user=user, comment=comment, score=score, id=id
        )

    def _feedback(self) -> "Feedback":
        from taskpilot_instrument._history import History
        from taskpilot_instrument.feedback import Feedback
        from taskpilot_instrument.sinks.ledger import open_ledger

        with self._votes_lock:
            if self._votes is None:
                ledger = self.parts.ledger or open_ledger("memory")
                history = self.parts.history or History(None, self._clock)
                self._votes = Feedback(ledger, history, self._clock, self._note)
            return self._votes

    def _note(self, event: Event) -> None:
        self._recorder.note(event)  # the recorder of this moment: it may have got a gate

    def feedback_token(self, run: "WorkflowRun | str", *, lifetime_s: float = 30 * 86_400) -> str:
        """Return a token with which a web page can vote on one run, without any other credential.

        :param run: the run, or its request id.
        :param lifetime_s: seconds until it expires; 30 days by default.
        :raises ConfigurationError: without the setting ``feedback_key``.
        """
        from taskpilot_instrument.feedback import make_token

        request_id = run if isinstance(run, str) else run.request_id
        return make_token(self._feedback_key(), request_id, lifetime_s=lifetime_s)

    def _run_of(self, token: object, others: tuple[str | None, ...]) -> str:
        """Return the request id that a token speaks of.

        :param others: what else names a run; a token does that itself.
        :raises ConfigurationError: for a token that is not ours, was changed or has expired.
        """
        from taskpilot_instrument.feedback import read_token

        if not isinstance(token, str):
            raise ConfigurationError(
                f"record_feedback(token=…) takes what feedback_token(run) returned, not {token!r:.80}"
            )
        if any(other is not None for other in others):
            raise ConfigurationError("a token names its run itself: leave request_id and trace_id out")
        return read_token(self._feedback_key(), token)

    def _feedback_key(self) -> str:
        if self.settings.feedback_key is None:
            raise ConfigurationError(
                "feedback tokens need a secret: set feedback_key= or TASKPILOT_FEEDBACK_KEY, the same everywhere"
            )
        return self.settings.feedback_key
