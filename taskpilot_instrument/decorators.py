"""The decorators that turn a user's functions and classes into operations."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, overload

from taskpilot_instrument._callables import observe
from taskpilot_instrument._framework_runs import IN_USE, join
from taskpilot_instrument._guard import swallow
from taskpilot_instrument._operation import Operation, current
from taskpilot_instrument._recorder import Recorder, active
from taskpilot_instrument.errors import ConfigurationError
from taskpilot_instrument.semconv import GEN_AI_TOOL_DESCRIPTION, Kind
from taskpilot_instrument.typing import Capture

F = TypeVar("F", bound="Callable[..., Any] | classmethod[Any, ..., Any] | staticmethod[..., Any]")

#: Methods of a decorated class that are a run of it, unless ``methods=`` names others.
ENTRY_METHODS: Final = (
    "run", "execute", "invoke", "__call__", "stream", "arun", "aexecute", "ainvoke", "astream",
    "run_async", "run_sync", "run_stream", "stream_async",
)  # fmt: skip

_OBSERVED: Final = "__taskpilot_observed__"
_SPEC: Final = "__taskpilot_spec__"


class _Spec:
    """What a decorator was told: kind of operation, explicit name, entry methods."""

    __slots__ = ("explicit_methods", "kind", "methods", "name")

    def __init__(self, kind: Kind, name: str | None, methods: Iterable[str] | None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise ConfigurationError(f"name= takes a non-empty string, not {name!r}")
        if isinstance(methods, str):
            raise ConfigurationError(f"methods= takes a list of method names: methods=[{methods!r}]")
        self.kind = kind
        self.name = name
        self.explicit_methods = methods is not None
        self.methods = tuple(methods) if methods is not None else ENTRY_METHODS


@overload
def observed_agent(target: F, /) -> F: ...
@overload
def observed_agent(*, name: str | None = None, methods: Iterable[str] | None = None) -> Callable[[F], F]: ...
def observed_agent(target: Any = None, /, *, name: str | None = None, methods: Iterable[str] | None = None) -> Any:
    """Make each run of an agent an operation: span ``{agent}.execute``, log lines, metrics.

    Works on classes (their entry methods are wrapped in place, in subclasses too), functions, methods,
    classmethods and staticmethods; sync, async and generators. An agent with no workflow around it opens one.

    :param name: the agent's name; else the class's (a subclass has its own), else the function's.
    :param methods: entry methods of a class; else those of :data:`ENTRY_METHODS` that it has.
    :raises ConfigurationError: where the target cannot be run, or a class has none of the methods.
    """
    return _decorate(target, _Spec(Kind.AGENT, name, methods))


@overload
def observed_tool(target: F, /) -> F: ...
@overload
def observed_tool(*, name: str | None = None, methods: Iterable[str] | None = None) -> Callable[[F], F]: ...
def observed_tool(target: Any = None, /, *, name: str | None = None, methods: Iterable[str] | None = None) -> Any:
    """Make each call of a tool an operation: a span with the tool's name, log lines, metrics.

    :param name: the tool's name; else the function's or class's.
    :param methods: entry methods of a class; else those of :data:`ENTRY_METHODS` that it has.
    :raises ConfigurationError: where the target cannot be called, or a class has none of the methods.
    """
    return _decorate(target, _Spec(Kind.TOOL, name, methods))


@overload
def observed_workflow(target: F, /) -> F: ...
@overload
def observed_workflow(*, name: str | None = None, methods: Iterable[str] | None = None) -> Callable[[F], F]: ...
def observed_workflow(target: Any = None, /, *, name: str | None = None, methods: Iterable[str] | None = None) -> Any:
    """Make each call a workflow run: span ``workflow.run``, a row in the golden signals.

    :param name: the workflow's name; else the function's or class's.
    :param methods: entry methods of a class; else those of :data:`ENTRY_METHODS` that it has.
    :raises ConfigurationError: where the target cannot be called, or a class has none of the methods.
    """
    return _decorate(target, _Spec(Kind.WORKFLOW, name, methods))


def _decorate(target: Any, spec: _Spec) -> Any:
    if target is None:
        return functools.partial(_apply, spec)
    return _apply(spec, target)


def _apply(spec: _Spec, target: Any) -> Any:
    if isinstance(target, type):
        return _observe_class(target, spec)
    if spec.explicit_methods:
        raise ConfigurationError(
            f"methods= names the entry methods of a class; {getattr(target, '__name__', target)!r:.80} is none: "
            f"leave it out"
        )
    if isinstance(target, classmethod | staticmethod):
        return _rewrap(target, _observe_function(target.__func__, spec))
    if not callable(target):
        raise ConfigurationError(f"observed_{spec.kind} takes a class or a callable, not {type(target).__name__}")
    return _observe_function(target, spec)


def _rewrap(descriptor: "classmethod[Any, ..., Any] | staticmethod[..., Any]", fn: Any) -> Any:
    return descriptor if fn is descriptor.__func__ else type(descriptor)(fn)


# --- functions ----------------------------------------------------------------------------------


def _observe_function(fn: Callable[..., Any], spec: _Spec) -> Callable[..., Any]:
    if getattr(fn, _OBSERVED, None) is spec.kind:
        return fn
    simple = getattr(fn, "__name__", None) or type(fn).__name__
    owner = _owner(fn)
    named = spec.kind is not Kind.TOOL  # a tool is called after its function, and each call of it counts
    describe = _Arguments(fn)
    attributes = _description(fn) if spec.kind is Kind.TOOL else None

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        recorder = active()
        if recorder is None:
            return None
        try:
            name, subject, skip = spec.name or simple, None, 0
            if owner is not None and args and (cls := _instance_class(args[0], owner)) is not None:
                skip = 1
                if named:
                    name, subject = spec.name or cls.__name__, args[0]
                    if _is_running(spec.kind, subject):
                        return None
            if IN_USE and spec.kind in IN_USE:
                part = join(fn, name, lambda: describe.named(args, skip, kwargs))
                if part is not None:
                    return part
            return _start(recorder, spec.kind, name, subject, attributes, describe, args, skip, kwargs)
        except Exception as error:
            swallow("start", error)
            return None

    return _marked(observe(fn, begin), spec.kind)


def _marked(wrapper: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    setattr(wrapper, _OBSERVED, kind)
    return wrapper


def _owner(fn: Callable[..., Any]) -> str | None:
    """Return the qualified name of the class in whose body ``fn`` was written, None for a plain function."""
    path, _, _ = getattr(fn, "__qualname__", "").rpartition(".")
    return path if path and not path.endswith("<locals>") else None


def _instance_class(first: object, owner: str) -> type | None:
    cls = first if isinstance(first, type) else type(first)
    return cls if any(base.__qualname__ == owner for base in cls.__mro__) else None


def _description(fn: object) -> dict[str, str] | None:
    doc = inspect.getdoc(fn)
    return {GEN_AI_TOOL_DESCRIPTION: doc.partition("\n\n")[0][:1024]} if doc else None


# --- classes ------------------------------------------------------------------------------------


def _observe_class(cls: type, spec: _Spec) -> type:
    inherited: _Spec | None = getattr(cls, _SPEC, None)
    known = inherited is not None and inherited.kind is spec.kind
    wrapped = [name for name in spec.methods if _wrap_entry(cls, name, spec)]
    if not wrapped and not known:
        wanted = ", ".join(spec.methods)
        raise ConfigurationError(
            f"{cls.__name__} has none of the methods {wanted}: "
            f'name its entry methods, as in @observed_{spec.kind}(methods=["handle"])'
        )
    setattr(cls, _SPEC, spec)
    if not known:
        _follow_subclasses(cls)
    return cls


def _wrap_entry(cls: type, name: str, spec: _Spec) -> bool:
    """Wrap one entry method in place, wherever the class has it from; tell whether it has it."""
    for base in cls.__mro__[:-1]:
        if name in base.__dict__:
            found = base.__dict__[name]
            break
    else:
        if spec.explicit_methods:
            raise ConfigurationError(f"{cls.__name__} has no method {name!r}, which methods= names")
        return False
    fn = found.__func__ if isinstance(found, classmethod | staticmethod) else found
    if not callable(fn) or isinstance(fn, type) or getattr(fn, "__isabstractmethod__", False):
        return False
    if getattr(fn, _OBSERVED, None) is spec.kind:
        return True
    bound = not isinstance(found, staticmethod)
    wrapper = _marked(observe(fn, _entry_begin(spec.kind, cls, _Arguments(fn), bound=bound)), spec.kind)
    setattr(cls, name, _rewrap(found, wrapper) if fn is not found else wrapper)
    return True


def _entry_begin(
    kind: Kind, cls: type, describe: "_Arguments", *, bound: bool
) -> Callable[[tuple[Any, ...], dict[str, Any]], Operation | None]:
    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operation | None:
        recorder = active()
        if recorder is None:
            return None
        try:
            subject: Any = args[0] if bound else cls
            if _is_running(kind, subject):
                return None
            name = _class_name(subject if isinstance(subject, type) else type(subject))
            return _start(recorder, kind, name, subject, None, describe, args, 1 if bound else 0, kwargs)
        except Exception as error:
            swallow("start", error)
            return None

    return begin


def _class_name(cls: type) -> str:
    spec = cls.__dict__.get(_SPEC)
    return spec.name if spec is not None and spec.name else cls.__name__


def _follow_subclasses(cls: type) -> None:
    """Wrap the entry methods that later subclasses define, keeping the class's own ``__init_subclass__``."""
    original = cls.__dict__.get("__init_subclass__")

    def __init_subclass__(subclass: type, **kwargs: Any) -> None:  # noqa: N807 - it becomes that method
        # Not super(cls, …): ``@dataclass(slots=True)`` makes a new class of the same body.
        owner: Any = next(base for base in subclass.__mro__[1:] if base.__dict__.get("__init_subclass__") is hook)
        if original is not None:
            original.__get__(None, subclass)(**kwargs)
        else:
            super(owner, subclass).__init_subclass__(**kwargs)
        try:
            spec: _Spec = getattr(owner, _SPEC)
            for name in spec.methods:
                if name in subclass.__dict__:
                    _wrap_entry(subclass, name, spec)
        except Exception as error:
            swallow("subclass", error)

    as_method: Any = classmethod  # its type wants a class where this is given a plain function
    hook = as_method(__init_subclass__)
    cls.__init_subclass__ = hook  # type: ignore[method-assign] # a classmethod object is what the class body would hold


# --- starting -----------------------------------------------------------------------------------


def _is_running(kind: Kind, subject: object) -> bool:
    """Tell whether the innermost run of this kind is already a run of ``subject``."""
    around = current()
    if kind is not Kind.TOOL:  # a tool may call its like, so only the innermost operation counts
        while around is not None and around.kind is not kind:
            around = around.parent
    return around is not None and around.kind is kind and around.subject is subject and not around.is_finished


class _Arguments:
    """Put the arguments of a call under the names that they have in its function, for content capture.

    Redaction goes by names: a password that was passed by position has to be known as one.
    """

    __slots__ = ("_plain", "_signature", "fn")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self._signature: inspect.Signature | None = None
        #: Names of the parameters, where each can be given by place and by name: ``bind()`` takes microseconds.
        self._plain: tuple[str, ...] | None = None

    def named(self, args: tuple[Any, ...], skip: int, kwargs: dict[str, Any]) -> Any:
        """Return the arguments by name without the first ``skip``, which are the instance or class."""
        try:
            if self._signature is None:
                self._signature = inspect.signature(self.fn)
                parameters = self._signature.parameters.values()
                if all(each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for each in parameters):
                    self._plain = tuple(each.name for each in parameters)
            plain = self._plain
            if plain is not None and (args or kwargs) and len(args) <= len(plain):
                by_place = dict(zip(plain[skip:], args[skip:]))  # noqa: B905 - strict= takes longer than the rest
                if not kwargs:
                    return by_place
                if not kwargs.keys() - plain[len(args) :]:
                    return by_place | {name: kwargs[name] for name in plain if name in kwargs}
            bound = list(self._signature.bind(*args, **kwargs).arguments.items())
        except Exception:  # no signature to be had, or a call that will itself say what is wrong with it
            bound = []
        kinds = [each.kind for each in self._signature.parameters.values()] if self._signature is not None else []
        if not bound or kinds[0] is inspect.Parameter.VAR_POSITIONAL:  # then there are no names
            return [*args[skip:], kwargs] if kwargs else list(args[skip:])
        return dict(bound[skip:])


def _start(
    recorder: Recorder,
    kind: Kind,
    name: str,
    subject: object,
    attributes: dict[str, str] | None,
    arguments: _Arguments,
    args: tuple[Any, ...],
    skip: int,
    kwargs: dict[str, Any],
) -> Operation:
    text = _text(recorder.capture, kind, arguments.named(args, skip, kwargs)) if recorder.capture is not None else None
    operation = Operation(recorder, kind, name, subject=subject, attributes=attributes)
    operation.input_text = text
    for value in args[skip:] or kwargs.values():
        if type(value) is str:
            operation.input_length = len(value)
            break
    operation.announce()
    controls = recorder.controls
    if controls is not None and kind is not Kind.WORKFLOW:
        operation.body = controls.around(operation, arguments.fn, lambda: arguments.named(args, skip, kwargs))
    return operation


def _text(capture: Capture, kind: Kind, given: Any) -> str | None:
    # An agent's one argument is what was asked of it, and reads best as it is; a tool's arguments are an object.
    whole = kind is not Kind.TOOL and isinstance(given, dict) and len(given) == 1
    try:
        return capture(next(iter(given.values())) if whole else given)
    except Exception as error:
        swallow("capture", error)
        return None
