"""Bearer tokens: made once, kept as hashes, read again when the file changes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bilateral_export.errors import UserError
from bilateral_serving.front_door.guard import Guard, RefusedError
from bilateral_serving.tokens import Caller, Tokens, hash_of, make_token, read_tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.txt"


def test_a_token_is_known_by_its_hash_and_stands_nowhere(path: Path) -> None:
    token = make_token("alice", path, rate=2.5, largest=1000)
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_tokens(path) == {hash_of(token): Caller("alice", 2.5, 1000)}
    assert Tokens(path).caller(token) == Caller("alice", 2.5, 1000)
    assert Tokens(path).caller(token + "x") is None


def test_callers_come_and_go_without_a_restart(path: Path) -> None:
    old = make_token("alice", path)
    tokens = Tokens(path)
    new = make_token("alice", path)
    assert tokens.caller(old) == tokens.caller(new) == Caller("alice")
    path.write_text("".join(line for line in path.open() if hash_of(new) in line))
    assert tokens.caller(old) is None
    assert tokens.caller(new) == Caller("alice")
    path.write_text("nonsense\n")  # half-written, say
    assert tokens.caller(new) == Caller("alice")
    path.unlink()
    assert tokens.caller(new) == Caller("alice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no token"),
        ("# a comment\n", "has no token"),
        ("alice\n", "line 1"),
        (f"alice {'0' * 64}\nalice secret-in-the-clear\n", "line 2"),
        (f"alice {'0' * 64} rate=fast\n", "line 1"),
        (f"al ice {'0' * 64}\n", "line 1"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_tokens(path)
    assert "secret" not in str(error.value)


def test_a_rate_lets_a_burst_through_and_then_no_more(path: Path) -> None:
    guard = Guard(Tokens(_with(path, "alice", rate=5)))
    caller = Caller("alice", rate=5)
    for _ in range(5):
        guard.spend(caller, 1)
    with pytest.raises(RefusedError, match="5 requests a second"):
        spend(guard, caller, 1000)  # faster than five a second
    guard.spend(Caller("bob", rate=5), 1)  # has his own
    guard.spend(Caller("carol"), 1 << 30)
    with pytest.raises(RefusedError, match="may send 10"):
        guard.spend(Caller("dave", bytes=10), 11)


def spend(guard: Guard, caller: Caller, times: int) -> None:
    for _ in range(times):
        guard.spend(caller, 1)


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer ", "Basic abc", "Bearer abc", "abc"])
def test_what_is_no_token_is_refused(path: Path, shown: str) -> None:
    guard = Guard(Tokens(_with(path, "alice")))
    with pytest.raises(RefusedError) as refused:
        guard.caller(shown)
    assert refused.value.is_unknown
    assert Guard(None).caller(shown) is None


def _with(path: Path, name: str, rate: float | None = None) -> Path:
    make_token(name, path, rate=rate)
    return path
