"""What is shipped, what is public, and which way imports point."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import taskpilot_instrument

PACKAGE: Final = Path(taskpilot_instrument.__file__).parent
CHECKOUT: Final = Path(__file__).resolve().parent.parent
NAME: Final = "taskpilot_instrument"

only_in_a_checkout = pytest.mark.skipif(
    not (CHECKOUT / ".git").exists(), reason="looks at the checkout; these tests were copied out of it"
)

#: Level of each module or package; a package speaks for what is in it and not named here. Imports point to the same
#: level or a lower one.
LEVELS: Final = {
    "_version": 0,
    "semconv": 0,
    "errors": 0,
    "typing": 0,
    "_addresses": 1,
    "_assignment": 1,
    "_definition": 1,
    "_display": 1,
    "_fingerprint": 1,
    "_forms": 1,
    "_forks": 1,
    "_growth": 4,
    "_guard": 1,
    "_hourly": 1,
    "context": 1,
    "redaction": 1,
    "_setting": 1,
    "settings": 1,
    "_money": 1,
    "_rates": 1,
    "_bills": 2,
    "_collector": 2,
    "_operation": 2,
    "_pace": 2,
    "_recorder": 2,
    "_records": 2,
    "_totals": 2,
    "_unit_prices": 2,
    "_waste": 2,
    "_pricebook": 2,
    "pricing": 2,
    "usage": 2,
    "_backlog": 3,
    "_budget_accounts": 3,
    "_budget_file": 3,
    "_budget_windows": 1,
    "_budget_words": 3,
    "_decisions": 3,
    "_history": 3,
    "_rule_fields": 3,
    "_text_rules": 3,
    "_tool_rules": 3,
    "_refusals": 3,
    "_spending": 3,
    "_subject": 3,
    "_token_watch": 3,
    "_waiting": 3,
    "_worst_case": 3,
    "budgets": 3,
    "guardrails": 3,
    "limits": 3,
    "policy": 3,
    "runaway": 3,
    "sinks": 3,
    "_alerting": 4,
    "_bodies": 4,
    "_callables": 4,
    "_fleet": 4,
    "_framework_runs": 4,
    "_checks": 4,
    "_estimates": 4,
    "_effects": 4,
    "_experiment_report": 4,
    "_inspection": 4,
    "_prometheus": 4,
    "_report": 4,
    "_sequential": 4,
    "_signals_json": 4,
    "_signals_words": 4,
    "_streams": 4,
    "_verdicts": 4,
    "alerts": 4,
    "comparison": 4,
    "_repricing": 4,
    "experiments": 4,
    "feedback": 4,
    "golden": 4,
    "propagation": 4,
    "_answers": 5,
    "_assembly": 5,
    "_backends": 5,
    "_delivery": 5,
    "_instrument": 5,
    "_provider": 5,
    "_report.entry": 5,
    "_voting": 5,
    "decorators": 5,
    "health": 5,
    "integrations": 5,
    "patches": 5,
    "runtime": 5,
    "tracking": 5,
    "workflow": 5,
    "_check": 6,
    "_budgets_command": 6,
    "_commands": 6,
    "_compared": 6,
    "_demo": 6,
    "_demo_page": 6,
    "_ending": 6,
    "_report.command": 6,
    "_runs_command": 6,
    "_signals_command": 6,
    "_trace_tree": 6,
    "cli": 6,
    "embedded": 6,
    "instrumentor": 6,
    "testing": 6,
    "web": 6,
    "": 6,
}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name of every module below the package, and its file; the package itself is ``""``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "_examples":
            yield ".".join(parts).removesuffix("__init__").removesuffix("."), path


def level(module: str) -> int:
    """Return the level of the room that a module is in."""
    return LEVELS[module] if module in LEVELS else LEVELS[module.partition(".")[0]]


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module, but not what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from run_time_nodes(node)


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports anywhere at run time, relative to the package."""
    known = {name for name, _ in modules()}
    found: set[str] = set()
    for node in run_time_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == NAME:
                inner = name.removeprefix(NAME).removeprefix(".")
                found.add(inner if inner in known else inner.rpartition(".")[0])
    return found


# --- imports ------------------------------------------------------------------------------------


def test_every_module_has_a_level() -> None:
    """A new module is given a place in the house before it is used."""
    assert [] == [name for name, _ in modules() if name.partition(".")[0] not in LEVELS]


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_imports_point_only_downward(module: str, path: Path) -> None:
    """No module imports one from a level above its own, not even inside a function."""
    assert [] == sorted(other for other in imported(path) if level(other) > level(module))


@pytest.mark.parametrize(("module", "path"), [each for each in modules() if each[0].startswith("sinks.")])
def test_sinks_do_not_know_each_other(module: str, path: Path) -> None:
    """A sink imports no other sink; what sinks share stands in private modules, which import no sink either."""
    assert set() == {
        other for other in imported(path) if other.startswith("sinks.") and not other.startswith("sinks._")
    } - {module}


def test_importing_the_package_is_light() -> None:
    """Importing the package loads no extra, no exporter, no price table and no HTTP client.

    Except for rich, which structlog imports wherever it is installed.
    """
    heavy = (
        "openai", "starlette", "uvicorn", "redis", "scipy", "numpy", "genai_prices", "pydantic", "httpx",
        "httpx2", "requests", "grpc", "google.protobuf", "opentelemetry.exporter",
    )  # fmt: skip
    code = f"import sys, {NAME}; print([name for name in {heavy!r} if name in sys.modules])"

    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert "[]\n" == loaded.stdout


# --- the public names ---------------------------------------------------------------------------


def test_all_is_the_public_names() -> None:
    """``__all__`` holds exactly the public names that are not modules."""
    public = {
        name
        for name in dir(taskpilot_instrument)
        if not name.startswith("_") and not isinstance(getattr(taskpilot_instrument, name), ModuleType)
    }

    assert public | {"__version__"} == set(taskpilot_instrument.__all__)


@pytest.mark.parametrize("name", [name for name, _ in modules() if name])
def test_each_module_offers_what_its_all_names(name: str) -> None:
    """Where a module has ``__all__``, every name in it is there."""
    module = import_module(f"{NAME}.{name}")

    assert [] == [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)]


def test_the_package_file_has_no_logic() -> None:
    """``__init__.py`` holds imports and names, and defines nothing."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())

    assert [] == [
        ast.unparse(node)
        for node in tree.body
        if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign)
    ]


# --- the wheel ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel that would be shipped."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """Read what the wheel says of itself."""
    return message_from_string(
        wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    )


@only_in_a_checkout
def test_the_wheel_holds_the_package_and_the_example(wheel: zipfile.ZipFile) -> None:
    """Every source file, the typing marker and the example that the demo runs are in the wheel, and nothing else."""
    sources = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / NAME).rglob("*.py")}

    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}

    page = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / NAME / "web").glob("page.*")}
    assert len(page) == 6
    assert sources | page | {f"{NAME}/py.typed", f"{NAME}/_examples/taskpilot_workflow.py"} == shipped


@only_in_a_checkout
def test_the_wheel_carries_its_licence_and_its_command(wheel: zipfile.ZipFile, metadata: Message) -> None:
    """The licence text and the command line's entry point are in the metadata."""
    texts = {name.rpartition("/")[2]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}

    assert "Apache-2.0" == metadata["License-Expression"]
    assert texts["LICENSE"] == (CHECKOUT / "LICENSE").read_text()
    assert "[console_scripts]\ntaskpilot-instrument = taskpilot_instrument.cli:main\n" in texts["entry_points.txt"]


@only_in_a_checkout
def test_optional_libraries_are_optional(metadata: Message) -> None:
    """The core asks for no optional library; each is behind an extra."""
    requirements = metadata.get_all("Requires-Dist", [])
    core = {re.split(r"[^\w.-]", each)[0] for each in requirements if "extra ==" not in each}

    optional = {"openai", "rich", "starlette", "uvicorn", "redis", "scipy", "agent-framework-core", "nemoguardrails"}
    assert set() == core & optional
    assert {
        "agent-framework", "cli", "dev", "experiments", "frameworks", "langchain", "nemo", "openai", "openai-agents",
        "pydantic-ai", "redis", "sockets", "web",
    } == set(metadata.get_all("Provides-Extra", []))  # fmt: skip


@only_in_a_checkout
def test_the_core_imports_only_what_it_declares() -> None:
    """Every third-party library that a module imports when it is loaded is a dependency of the core or of an extra."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = [each for name, extra in project["optional-dependencies"].items() if name != "dev" for each in extra]
    declared = {re.split(r"[^\w.-]", each)[0].replace("-", "_") for each in [*project["dependencies"], *extras]}
    # Distributions whose packages are named otherwise, and grpc, in whose types its exporter takes arguments.
    declared |= {"opentelemetry", "agents", "agent_framework", "pydantic_ai", "grpc", NAME}
    declared |= set(sys.stdlib_module_names)
    used = {
        name.split(".")[0]
        for _, path in modules()
        for node in run_time_nodes(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }

    assert set() == used - declared


# --- the checkout -------------------------------------------------------------------------------


@only_in_a_checkout
@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("a path of somebody's machine", r"(?<![\w.\]*})-])/(?:wor[k]|roo[t]|home/\w+|Users/\w+)/"),
        ("a tool that is not part of the project", r"\.librar[y]/|before-sto[p]|\.\./share[d]/"),
        (
            "how the text came about",
            r"(?i)co-authored-b[y]|(?:generated|written) (?:by|with) (?:an? )?(?:ai|llm|model)\b",
        ),
        ("the tracker", r"(?i)\bissues? #?\d|\bPR #?\d|(?<![\w&/])#\d+\b"),
    ],
)
def test_tracked_files_speak_of_the_project_alone(what: str, pattern: str) -> None:
    """No tracked file names a machine's paths, the tracker, or how it was written."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    said = [
        f"{name}:{number}: {line.strip()}"
        for name in listed.stdout.split("\0")
        if name and (CHECKOUT / name).is_file()
        for number, line in enumerate((CHECKOUT / name).read_text(errors="replace").splitlines(), 1)
        if re.search(pattern, line)
    ]

    assert [] == said, what


@only_in_a_checkout
def test_the_license_is_whole() -> None:
    """The licence is the unshortened text of the one that the metadata names."""
    text = (CHECKOUT / "LICENSE").read_text()

    assert "Apache License" == text.split("\n")[1].strip()
    assert "END OF TERMS AND CONDITIONS" in text
