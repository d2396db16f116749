"""What an LLM call may cost at most."""

from typing import Final

from taskpilot_instrument._records import CONVERSATION, LLMCall, Most
from taskpilot_instrument._token_watch import window_of
from taskpilot_instrument.typing import PriceSource

_UNREAD: Final = Most(None)
#: Responses and conversations whose length is remembered.
_MOST_KEPT: Final = 10_000
#: Ids of chat completions and of completions: nothing goes on with them.
_NEVER_CONTINUED: Final = ("chatcmpl-", "cmpl-")
#: Where neither the request nor the model's context window tells how much goes in.
_TOKENS_UNTOLD: Final = 20_000


class WorstCase:
    """Say what a call may cost at most, from what its request tells and the price of its model.

    A request that goes on with an earlier response has the tokens of that one as input too: they are remembered where
    it was made here, and else as many as the model can take.

    :param prices: what tokens cost.
    """

    def __init__(self, prices: PriceSource) -> None:
        self._most_pico = prices.most_pico
        self._kept: dict[str, int] = {}

    def pico(self, llm: LLMCall, assumed_output_tokens: int) -> int | None:
        """Return the most that the call may cost, in pico-dollars; None where its model has no price.

        :param assumed_output_tokens: of each answer, where the request sets no limit.
        """
        given, made, answers, continues, _, _ = llm.most or _UNREAD
        if made is None:
            made = assumed_output_tokens * answers
        if given is None or continues is not None:
            given = self._with_earlier(llm, given, continues)
        return self._most_pico(llm, given, made) if given or made else 0

    def _with_earlier(self, llm: LLMCall, given: int | None, continues: str | None) -> int:
        earlier = self._kept.get(continues) if continues is not None else None
        if earlier is not None and given is not None:
            return earlier + given
        window = window_of(llm.model, None, llm.provider, llm.base_url) or _TOKENS_UNTOLD
        return max(window, given or 0)

    def note(self, llm: LLMCall) -> None:
        """Remember how long a response or conversation has become."""
        usage, name = llm.usage, llm.response_id
        if usage is None or name is None or name.startswith(_NEVER_CONTINUED):
            return
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        length = (usage.input_tokens or 0) + (usage.output_tokens or 0)
        self._kept[name] = length
        continues = llm.most.continues if llm.most is not None else None
        if continues is not None and continues.startswith(CONVERSATION):
            self._kept[continues] = length
