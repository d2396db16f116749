"""What never gets written, what is left as it is, and how long it may take."""

import base64
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from taskpilot_instrument import _guard
from taskpilot_instrument.redaction import FAILED_MARKER, MARKER, capture_text, cut, redact, redactor

# Put together here, so that whoever searches this repository for secrets finds none.
BEGIN, END = "-" * 5 + "BEGIN ", "-" * 5 + "END "
KEY = "PRIVATE KEY" + "-" * 5
JWT = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiJ0YXNrcGlsb3QifQ." + "a1B2-c3_D4" * 4
PEM = f"{BEGIN}RSA {KEY}\nMIIEow\nIBAAKC\n{END}RSA {KEY}"
SECRETS = {
    "openai": "sk-" + "a1B2" * 12,
    "openai project": "sk-proj-" + "Ab_-9" * 20,
    "openai service account": "sk-svcacct-abcdefgh12345678",
    "openai masked": "sk-abcd********wxyz",
    "aws": "AKIA" + "TASKPILOT0EXAMPL",
    "aws session": "ASIA" + "TASKPILOT0EXAMPL",
    "google": "AIza" + "SyA-1_b2C" * 4,
    "github": "ghp_" + "aB3" * 12,
    "github fine-grained": "github_pat_" + "11ABC_def" * 5,
    "slack": "xoxb-123456789012-abcdefABCDEF",
    "slack app": "xapp-1-A0123-456-abcdef",
    "jwt": JWT,
    "private key": PEM,
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("around", ["{}", "key {} is wrong", "({})", "a\n{}\nb", '["{}"]', r"line\n{}", "x={}"])
def test_secret_is_replaced_wherever_it_stands(secret: str, around: str) -> None:
    """A key, token or private key goes, and the text around it stays."""
    assert around.format(MARKER) == redact(around.format(secret))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (f"Authorization: Bearer {MARKER}", "Authorization: Bearer abc.def-123456"),
        (f"Authorization: Basic {MARKER}", "Authorization: Basic dXNlcjpwYXNz"),
        (f"authorization={MARKER}", "authorization=letmein"),
        (f"sent bearer {MARKER} twice", "sent bearer 0a1b2c3d4e twice"),
        (f"sent Basic {MARKER}", "sent Basic " + base64.b64encode(b"user:password").decode()),
        (f"{{'authorization': '{MARKER}'}}", "{'authorization': 'Bearer abcdefgh'}"),
    ],
)
def test_authorization_value_is_replaced(expected: str, text: str) -> None:
    """The credential of a header goes, its name and scheme stay."""
    assert expected == redact(text)


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "API-KEY", "apikey", "x-api-key", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "password",
        "DB_PASSWORD", "passwd", "pwd", "token", "access_token", "refresh-token", "secret", "client_secret",
        "passphrase", "private_key", "Ocp-Apim-Subscription-Key",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "pair",
    ["{}=VALUE", "{}: VALUE", '"{}": "VALUE"', "'{}': 'VALUE'", "{}='VALUE'", "?{}=VALUE&y", r'{{\"{}\": \"VALUE\"}}'],
)  # fmt: skip
def test_value_assigned_to_a_secret_name_is_replaced(name: str, pair: str) -> None:
    """Pairs of a telling name and a value lose the value, in every notation."""
    text = pair.format(name)

    assert text.replace("VALUE", MARKER) == redact(text.replace("VALUE", "hunter2"))


@pytest.mark.parametrize("value", ['a"b', "a'b", "a\\b", 'a\\"b', "über geheim", "a, b; c", "[x] {y}"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_quotes_and_backslashes_in_a_json_value_do_not_save_it(value: str, depth: int) -> None:
    """A value is replaced whole, also in JSON that is text inside JSON."""
    expected, text = json.dumps({"password": MARKER}), json.dumps({"password": value})
    for _ in range(depth - 1):
        expected, text = json.dumps({"body": expected}), json.dumps({"body": text})

    assert expected == redact(text)


@pytest.mark.parametrize("text", ['{"password": "hunter2', "password='hunter2", r"{\"password\": \"hunter2"])
def test_value_that_was_cut_off_is_replaced(text: str) -> None:
    """A missing end does not save a secret."""
    assert text.replace("hunter2", MARKER) == redact(text)


def test_private_key_without_its_end_is_replaced() -> None:
    """A key block goes to the end of the text where its last line is missing."""
    assert f"here: {MARKER}" == redact(f"here: {BEGIN}{KEY}\nMIIEow\nIBAAKC")


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (f"postgres://{MARKER}@db:5432/x", "postgres://user:pa55@db:5432/x"),
        (f"redis://{MARKER}@host", "redis://:pa@ss@host"),
        ("https://api.openai.com:443/v1/x@y", "https://api.openai.com:443/v1/x@y"),
        ("http://host:80 and me@example.com", "http://host:80 and me@example.com"),
    ],
)
def test_user_and_password_of_a_url_are_replaced(expected: str, text: str) -> None:
    """Credentials in a URL go; ports, paths and mail addresses stay."""
    assert expected == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the token count is 5",
        'max_tokens: 5, input_tokens=150, "total_tokens": 200',
        "A risk-management-overview-of-2024 for the task-force",
        "basic functionality and bearer authentication are explained",
        "Asia and the Pacific; a_variable_name; primary_key=id, sort_key: name, keys: 3",
        "password=None, token: null, secret=false",
        "if token == 5: return",
        "secretary: Ann, tokenizer=cl100k",
        "Rate limit reached for gpt-4o-mini in org-abc on tokens per min (TPM): Limit 200000, Used 199990.",
        "Übermäßig viele Zeichen, 日本語, 🎉",
    ],
)  # fmt: skip
def test_prose_stays_as_it_is(text: str) -> None:
    """Words that only sound secret do not change a text."""
    assert text == redact(text)


@given(st.text())
def test_redaction_of_any_text_is_stable(text: str) -> None:
    """What was redacted once does not change again."""
    assert redact(text) == redact(redact(text))


PIECES = [
    "sk-", "eyJ", ".", "://", ":", "@", "=", "password", "token", "api_key", "bearer ", "basic ", "authorization", " ",
    "\\", '"', "'", '\\"', BEGIN, KEY, END, "AKIA", "AIza", "ghp_", "github_pat_",
    "xoxb-", "xapp-", "a", "A1", "\n", "/", "-", "_",
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join), st.sampled_from(PIECES))
def test_redaction_takes_linear_time(unit: str, last: str) -> None:
    """The beginnings of secrets, a hundred thousand characters of them, are done with at once, and hide nothing.

    A pattern that is quadratic in any of these would need minutes for one example.
    """
    text = unit * (100_000 // len(unit)) + last

    assert SECRETS["openai"] not in redact(f"{text}\n{SECRETS['openai']}")


def test_hook_runs_after_our_own_redaction() -> None:
    """The user's function sees text without secrets, and has the last word."""
    assert f"<{MARKER}>" == redactor(lambda text: f"<{text}>")(SECRETS["aws"])


def test_without_a_hook_the_redactor_is_ours_alone() -> None:
    """No hook, no layer."""
    assert redact is redactor(None)


def _raises(text: str) -> str:
    raise ValueError(text)


@pytest.mark.parametrize("hook", [_raises, lambda text: None], ids=["raises", "returns no text"])
def test_text_is_lost_where_the_hook_fails(hook: Callable[[str], str], swallowing: None) -> None:
    """A broken hook costs the text, never the secret, and is counted."""
    assert FAILED_MARKER == redactor(hook)("something private")
    assert {"redact": 1} == _guard.swallowed()


def test_cut_says_how_much_there_was() -> None:
    """A long text ends with a note, a short one stays."""
    assert "ab… [cut: 5 characters in all]" == cut("abcde", 2)
    assert "abcde" == cut("abcde", 5)


@given(st.text(max_size=50), st.integers(0, 60))
def test_cut_keeps_the_beginning(text: str, limit: int) -> None:
    """What is kept is the beginning of the text, as long as the limit allows."""
    assert text[:limit] == cut(text, limit)[: min(limit, len(text))]


class Colour(Enum):
    """An enum."""

    RED = "red"


@dataclass
class Login:
    """A dataclass with a field that its author hides."""

    user: str
    hidden: str = field(repr=False)
    password: str = "hunter2"


class Task(BaseModel):
    """A pydantic model with a field that its author hides."""

    title: str
    hidden: str = Field(default="x", repr=False)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("plain text", "plain text"),
        ("null", None),
        ("3", 3),
        ("[1, 2.5, true, null]", [1, 2.5, True, None]),
        ('{"a": ["b"], "1": {}}', {"a": ("b",), 1: {}}),
        ('{"a": 1}', OrderedDict(a=1)),
        ("[]", set()),
        ('{"name": "日本\\n"}', {"name": "日本\n"}),
        ("red", Colour.RED),
        ('["red"]', [Colour.RED]),
        ("<3 bytes>", b"abc"),
        (f'{{"user": "ann", "password": "{MARKER}"}}', Login("ann", "x")),
        ('{"title": "tidy"}', Task(title="tidy")),
        ("Decimal('1.5')", Decimal("1.5")),
        ("[\"Decimal('1.5')\"]", [Decimal("1.5")]),
        ("<class 'int'>", int),
        (f'{{"api_key": "{MARKER}"}}', {"api_key": "abc"}),
        (f'["line\\n{MARKER}"]', ["line\n" + SECRETS["openai"]]),
    ],
)
def test_objects_become_redacted_text(expected: str, value: object) -> None:
    """Text stays text, what JSON knows becomes JSON, the rest its repr."""
    assert expected == capture_text(value, 1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('abc é\n"\\'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON.filter(lambda value: not isinstance(value, str)))
def test_what_json_can_express_comes_back_from_json(value: object) -> None:
    """The text of plain data is JSON that says the same."""
    assert value == json.loads(capture_text(value, 100_000))


class Hostile:
    """An object on which everything fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


class HostileDict(dict[str, int]):
    """A dictionary that fails while it is read."""

    def items(self) -> NoReturn:
        """Fail."""
        raise RuntimeError("changed size during iteration")


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("<unprintable Hostile>", Hostile()),
        ('[1, "<unprintable Hostile>"]', [1, Hostile()]),
        ("[1, {<unprintable list>", [1, HostileDict(a=1)]),
        ("[1, <unprintable list>", [1, 10**5000]),
    ],
)
def test_broken_objects_never_raise(expected: str, value: object) -> None:
    """What cannot be shown says so; what came before it stays."""
    assert expected == capture_text(value, 1000)


def test_cycles_end() -> None:
    """A list that holds itself is written to a certain depth."""
    endless: list[object] = []
    endless.append(endless)

    assert "[" * 12 + '"…"' + "]" * 12 == capture_text(endless, 1000)


@pytest.mark.parametrize("shift", range(0, 60, 3))
def test_a_secret_that_is_cut_off_is_not_shown(shift: int) -> None:
    """However much shorter the secrets before it have made the text: its head alone is not known for a secret."""
    secret = "sk-proj-" + "a1B2" * 12
    text = " " * shift + f"{secret} " * 200

    assert "sk-proj" not in capture_text(text, 400)
    assert "sk-proj" not in capture_text([text], 400)


def test_cycles_of_mappings_end() -> None:
    """A mapping that holds itself is written to the same depth."""
    endless: dict[str, object] = {}
    endless["a"] = endless

    assert '{"a": ' * 12 + '"…"' + "}" * 12 == capture_text(endless, 1000)


def test_a_class_is_no_instance_of_itself() -> None:
    """A class that an agent is given, such as the form of its answer, is written as what it is called."""
    assert json.dumps([repr(Login), repr(Task)]) == capture_text([Login, Task], 1000)


def test_iterators_are_not_consumed() -> None:
    """An iterator among the arguments still has everything afterwards."""
    numbers = iter([1, 2, 3])

    capture_text({"numbers": numbers}, 1000)

    assert [1, 2, 3] == list(numbers)


def test_a_large_object_is_not_written_out_to_its_end() -> None:
    """Beyond the limit nothing of a list is looked at."""
    looked_at: list[int] = []

    class Counted:
        def __init__(self, number: int) -> None:
            self.number = number

        def __repr__(self) -> str:
            looked_at.append(self.number)
            return "x" * 98

    text = capture_text([Counted(number) for number in range(10_000)], 100)

    assert text.startswith('["xxx')
    assert text.endswith("… [cut: more than 1124 characters in all]")
    assert len(looked_at) < 20


def test_a_long_text_is_cut_and_says_how_long_it_was() -> None:
    """A hundred thousand characters become the limit and a note."""
    assert "x" * 50 + "… [cut: 100000 characters in all]" == capture_text("x" * 100_000, 50)


@given(st.integers(0, 1300), st.sampled_from(sorted(SECRETS)), st.sampled_from(["", " " * 3000]))
def test_a_secret_at_the_cut_is_not_written(before: int, kind: str, after: str) -> None:
    """Wherever the limit falls, no recognisable part of a secret is left."""
    text = capture_text(" " * before + SECRETS[kind] + after, 100)

    assert SECRETS[kind][:12] not in text


@given(st.integers(0, 1300))
def test_a_password_at_the_cut_is_not_written(before: int) -> None:
    """A long password in a URL is recognised although its end lies far beyond the limit."""
    assert "hunter2" not in capture_text(" " * before + "postgres://user:" + "hunter2" * 100 + "@host" + " " * 900, 100)


def test_the_hook_sees_captured_text() -> None:
    """Captured text passes through what the caller composed."""
    assert "N" == capture_text({"a": 1}, 10, redactor(lambda text: "N"))


def test_paths_show_as_their_repr() -> None:
    """Objects without fields of their own show as their repr inside JSON too."""
    assert {"path": repr(Path("a"))} == json.loads(capture_text({"path": Path("a")}, 100))
