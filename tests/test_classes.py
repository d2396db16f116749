"""Decorated classes stay what they were, and each run of them is one span."""

import abc
import asyncio
import copy
import pickle
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest

from taskpilot_instrument import ConfigurationError, observed_agent, observed_tool, observed_workflow
from taskpilot_instrument.testing import Captured, capture


@observed_agent
class Planner:
    """An agent of the usual shape."""

    def __init__(self, name: str = "p") -> None:
        self.name = name

    def run(self, goal: str) -> str:
        """Plan."""
        return self.execute(goal)

    def execute(self, goal: str) -> str:
        """Plan for real."""
        return f"{self.name}:{goal}"


@observed_agent
class Careful(Planner):
    """Overrides and calls super()."""

    def run(self, goal: str) -> str:
        """Plan twice."""
        return super().run(goal) + "!"


class Undecorated(Planner):
    """A subclass that nobody decorated."""

    def execute(self, goal: str) -> str:
        """Plan otherwise."""
        return f"other:{goal}"


def test_identity_pickling_and_copies() -> None:
    """The class is the same class, and its instances pickle and copy."""
    assert Planner.__name__ == "Planner"
    assert pickle.loads(pickle.dumps(Planner("x"))).name == "x"
    assert copy.deepcopy(Planner("y")).run("g") == "y:g"
    assert pickle.loads(pickle.dumps(Planner)) is Planner


@pytest.mark.parametrize(("cls", "result"), [(Planner, "p:g"), (Careful, "p:g!"), (Undecorated, "other:g")])
def test_run_execute_super_is_one_span(captured: Captured, cls: type[Planner], result: str) -> None:
    """run() → execute() → super().run() is one span, named after the instance's class."""
    assert cls().run("g") == result
    assert captured.tree() == ["workflow.run", f"  {cls.__name__}.execute"]


def test_subclass_entry_called_directly(captured: Captured) -> None:
    """An entry method that a subclass defines is observed too."""
    Undecorated().execute("g")
    assert captured.tree() == ["workflow.run", "  Undecorated.execute"]


def test_two_instances_are_two_spans(captured: Captured) -> None:
    """An agent that runs another instance of its own class has that run beneath it."""

    @observed_agent
    class Node:
        def __init__(self, child: "Node | None" = None) -> None:
            self.child = child

        def run(self) -> None:
            if self.child is not None:
                self.child.run()

    Node(Node()).run()
    assert captured.tree() == ["workflow.run", "  Node.execute", "    Node.execute"]


def test_concurrent_runs_of_one_instance(captured: Captured) -> None:
    """Two runs of one instance side by side are two spans."""

    @observed_agent
    class Agent:
        async def run(self) -> None:
            await asyncio.sleep(0.01)

    async def main() -> None:
        agent = Agent()
        await asyncio.gather(agent.run(), agent.run())

    asyncio.run(main())
    assert captured.names().count("Agent.execute") == 2


def test_explicit_name_and_methods(captured: Captured) -> None:
    """name= and methods= say what a run is called and which methods are one."""

    @observed_agent(name="planner", methods=["handle"])
    class Agent:
        def handle(self) -> int:
            return 1

        def run(self) -> int:
            return 2

    assert Agent().run() == 2
    assert Agent().handle() == 1
    assert captured.names() == ["planner.execute", "workflow.run"]


@pytest.mark.parametrize("order", ["outside", "inside"])
def test_classmethods_and_staticmethods_in_both_orders(captured: Captured, order: str) -> None:
    """Decorators work above and below @classmethod and @staticmethod."""

    class Tools:
        if order == "outside":

            @observed_tool
            @classmethod
            def made(cls, x: int) -> tuple[str, int]:
                return cls.__name__, x

            @observed_tool
            @staticmethod
            def added(x: int, y: int) -> int:
                return x + y

        else:

            @classmethod
            @observed_tool
            def made(cls, x: int) -> tuple[str, int]:
                return cls.__name__, x

            @staticmethod
            @observed_tool
            def added(x: int, y: int) -> int:
                return x + y

    assert Tools.made(1) == ("Tools", 1)
    assert Tools().added(1, 2) == 3
    assert captured.names() == ["made", "added"]


def test_entry_methods_that_are_class_and_static_methods(captured: Captured) -> None:
    """A class whose run() is a classmethod or staticmethod is observed under its name."""

    @observed_agent
    class A:
        @classmethod
        def run(cls) -> str:
            return cls.__name__

        @staticmethod
        def execute(x: int) -> int:
            return x

    assert A.run() == "A"
    assert A.execute(3) == 3
    assert [name for name in captured.names() if name != "workflow.run"] == ["A.execute", "A.execute"]


def test_method_decorated_alone(captured: Captured) -> None:
    """A decorated method of an undecorated class is an agent called after the class of its instance."""

    class Writer:
        @observed_agent
        def draft(self, text: str) -> str:
            return text

    class Editor(Writer):
        pass

    assert Editor().draft("t") == "t"
    assert captured.tree() == ["workflow.run", "  Editor.execute"]


def test_dataclass_with_slots(captured: Captured) -> None:
    """@dataclass(slots=True), above or below, keeps slots and is observed."""

    @observed_agent
    @dataclass(slots=True)
    class Above:
        x: int

        def run(self) -> int:
            return self.x

    @dataclass(slots=True)
    @observed_agent
    class Below:
        x: int

        def run(self) -> int:
            return self.x

    class Child(Below):
        __slots__ = ()

        def run(self) -> int:
            return -self.x

    assert (Above(1).run(), Below(2).run(), Child(3).run()) == (1, 2, -3)
    assert Above.__slots__ == ("x",)
    assert Below.__slots__ == ("x",)
    assert [n for n in captured.names() if n != "workflow.run"] == ["Above.execute", "Below.execute", "Child.execute"]


def test_pydantic_model(captured: Captured) -> None:
    """A pydantic model keeps its fields, validation and schema."""

    @observed_agent
    class Agent(pydantic.BaseModel):
        goal: str

        def run(self) -> str:
            return self.goal

    assert Agent(goal="g").run() == "g"
    assert list(Agent.model_fields) == ["goal"]
    assert Agent.model_validate_json(Agent(goal="g").model_dump_json()) == Agent(goal="g")
    assert "Agent.execute" in captured.names()


def test_abstract_base_class(captured: Captured) -> None:
    """A decorated ABC stays abstract; the run() of its subclasses is observed."""

    @observed_agent
    class Base(abc.ABC):
        @abc.abstractmethod
        def run(self) -> int: ...

        def execute(self) -> int:
            return self.run()

    class Concrete(Base):
        def run(self) -> int:
            return 1

    with pytest.raises(TypeError, match="abstract"):
        Base()  # type: ignore[abstract]
    assert Concrete().execute() == 1
    assert captured.tree() == ["workflow.run", "  Concrete.execute"]


def test_own_init_subclass_is_kept() -> None:
    """A class's own __init_subclass__ still runs, with its keyword arguments."""
    seen: list[Any] = []

    @observed_agent
    class Base:
        def __init_subclass__(cls, tag: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            seen.append((cls.__name__, tag))

        def run(self) -> int:
            return 1

    class Child(Base, tag="x"):
        pass

    assert seen == [("Child", "x")]
    assert Child().run() == 1


def test_inherited_entry_of_an_undecorated_base(captured: Captured) -> None:
    """A class that has run() from a base which nobody decorated is observed; the base is not."""

    class Library:
        def run(self) -> int:
            return 1

    @observed_agent
    class Mine(Library):
        pass

    assert Library().run() == 1
    assert Mine().run() == 1
    assert captured.tree() == ["workflow.run", "  Mine.execute"]


def test_tool_and_workflow_classes(captured: Captured) -> None:
    """Classes can be tools and workflows too."""

    @observed_tool
    class Search:
        def __call__(self, q: str) -> str:
            return q

    @observed_workflow(name="triage")
    class Flow:
        async def run(self) -> str:
            return Search()("q")

    assert asyncio.run(Flow().run()) == "q"
    assert captured.tree() == ["workflow.run", "  Search"]
    assert captured.tags("workflow.run")["workflow"] == "triage"


async def test_streaming_agent_class(captured: Captured) -> None:
    """stream() as an async generator that calls another entry method is one span."""

    @observed_agent
    class Agent:
        async def run(self) -> int:
            return 1

        async def stream(self) -> AsyncIterator[int]:
            yield await self.run()

    assert [x async for x in Agent().stream()] == [1]
    assert captured.tree() == ["workflow.run", "  Agent.execute"]


def test_twice_decorated_class_is_once(captured: Captured) -> None:
    """Decorating a class twice gives one span a run."""
    twice = observed_agent(observed_agent(type("Twice", (), {"run": lambda self: 1})))
    assert twice().run() == 1
    assert captured.tree() == ["workflow.run", "  Twice.execute"]


@pytest.mark.parametrize(
    ("use", "hint"),
    [
        (lambda: observed_agent(type("Empty", (), {})), "none of the methods"),
        (lambda: observed_agent(methods=["nope"])(type("Empty", (), {})), "has no method 'nope'"),
        (lambda: observed_agent(methods="run"), r"methods=\['run'\]"),
        (
            lambda: observed_agent(methods=["run"])(print),
            "methods= names the entry methods of a class; 'print' is none",
        ),
        (lambda: observed_tool(methods=[])(lambda: 1), "methods= names the entry methods of a class"),
        (lambda: observed_tool(5), "class or a callable"),
        (lambda: observed_tool(name=""), "non-empty string"),
    ],
)
def test_bad_use_says_what_to_do(use: Any, hint: str) -> None:
    """A decorator that cannot do what it is asked says so at once."""
    with pytest.raises(ConfigurationError, match=hint):
        use()


def test_captured_arguments_have_their_names() -> None:
    """What is captured of a call goes by parameter names, so that a secret passed by position is known as one."""

    @observed_tool
    def login(user: str, password: str) -> str:
        return user

    class Store:
        def __init__(self) -> None:
            self.dsn = "internal-host"

        @observed_tool
        def find(self, query: str) -> str:
            return query

    @observed_agent
    def plan(goal: str) -> str:
        return goal

    with capture(capture_content=True) as captured:
        login("bob", "hunter2")
        Store().find("q")
        plan("Create a task")
    assert captured.tags("login")["gen_ai.tool.call.arguments"] == '{"user": "bob", "password": "[redacted]"}'
    assert captured.tags("find")["gen_ai.tool.call.arguments"] == '{"query": "q"}'
    assert captured.tags("plan.execute")["gen_ai.input.messages"] == "Create a task"
