"""Agents of every kind of callable, for the tests of what checks them."""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

import taskpilot_instrument as tp

#: What the agents below were called with since the test began.
RAN: Final[list[str]] = []


@tp.observed_agent(name="Echo")
def plain(text: str) -> str:
    """Return the text."""
    RAN.append(text)
    return f"echo {text}"


@tp.observed_agent(name="Echo")
async def coroutine(text: str) -> str:
    """Return the text."""
    RAN.append(text)
    return f"echo {text}"


@tp.observed_agent(name="Echo")
def generator(text: str) -> Iterator[str]:
    """Yield the text in two pieces, cut in the middle of a word."""
    RAN.append(text)
    yield "ec"
    yield f"ho {text}"


@tp.observed_agent(name="Echo")
async def async_generator(text: str) -> AsyncIterator[str]:
    """Yield the text in two pieces, cut in the middle of a word."""
    RAN.append(text)
    yield "ec"
    yield f"ho {text}"


@tp.observed_agent(name="Echo")
def hands_out_a_coroutine(text: str) -> Coroutine[Any, Any, str]:
    """Return a coroutine, as a plain method in front of an async one does."""

    async def run() -> str:
        RAN.append(text)
        return f"echo {text}"

    return run()


@tp.observed_agent(name="Echo")
def hands_out_a_generator(text: str) -> Iterator[str]:
    """Return a generator."""

    def run() -> Iterator[str]:
        RAN.append(text)
        yield "ec"
        yield f"ho {text}"

    return run()


@tp.observed_agent(name="Echo")
def hands_out_an_async_generator(text: str) -> AsyncIterator[str]:
    """Return an async generator."""

    async def run() -> AsyncIterator[str]:
        RAN.append(text)
        yield "ec"
        yield f"ho {text}"

    return run()


@tp.observed_agent(name="Echo")
async def awaits_an_async_generator(text: str) -> AsyncIterator[str]:
    """Return an async generator when awaited."""

    async def run() -> AsyncIterator[str]:
        RAN.append(text)
        yield "ec"
        yield f"ho {text}"

    return run()


Agent = Callable[[str], Any]
WHOLE: Final[tuple[Agent, ...]] = (plain, coroutine, hands_out_a_coroutine)
STREAMS: Final[tuple[Agent, ...]] = (
    generator, async_generator, hands_out_a_generator, hands_out_an_async_generator, awaits_an_async_generator,
)  # fmt: skip
KINDS: Final[tuple[Agent, ...]] = WHOLE + STREAMS


async def items(agent: Agent, text: str, seen: list[str] | None = None) -> list[Any]:
    """Run an agent of any kind to its end and return what it gave: its items, or its one result.

    :param seen: gets the items as they come, so that they are there where an error follows.
    """
    seen = [] if seen is None else seen
    result = agent(text)
    if inspect.isawaitable(result):
        result = await result
    if hasattr(result, "__aiter__"):
        async for item in result:
            seen.append(item)
    elif inspect.isgenerator(result):
        for item in result:
            seen.append(item)
    else:
        seen.append(result)
    return seen
