"""Words share messages: the first and the last go at once, every word once and in its order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bilateral_export.text
from bilateral_export.text import Word

BACKEND = Path(__file__).parents[3] / "serving" / "bilateral_serving" / "python_backend"


@pytest.fixture(scope="module")
def sending_type() -> Iterator[Any]:
    """The class as it lies beside a served model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BACKEND))
        patch.setitem(sys.modules, "bilateral_text", bilateral_export.text)
        import stream_sending

        yield stream_sending.Sending
        patch.delitem(sys.modules, "stream_sending")


def words(*tokens: int) -> list[Word]:
    return [Word(token, str(token), 0.0) for token in tokens]


def test_words_that_wait_for_a_message_share_it(sending_type: Any) -> None:
    sent: list[tuple[str, Any]] = []
    sending = sending_type(
        lambda stream, found: sent.append((stream, list(found))),
        lambda stream, failure: sent.append((stream, failure)),
    )
    for word in words(1, 2):
        sending.word("a", word)
    sending.word("b", *words(7))
    sending.send_all()
    assert sent == [("a", words(1, 2)), ("b", words(7))]
    sent.clear()
    sending.word("a", *words(3))
    broken = ValueError("no memory")
    sending.end("a", None)
    sending.end("b", broken)
    sending.end("c", broken)
    sending.send_all()
    assert sent == [("a", words(3)), ("a", None), ("b", broken), ("c", broken)]
    sending.send_all()
    assert len(sent) == 4


def test_a_stream_that_takes_nothing_keeps_no_words_of_others(sending_type: Any) -> None:
    sent: list[str] = []

    def send(stream: str, found: Any) -> None:
        if stream == "gone":
            raise OSError("no reader")
        sent.append(stream)

    sending = sending_type(send, lambda stream, failure: sent.append(f"end of {stream}"))
    for stream in ("gone", "b"):
        sending.word(stream, *words(1))
    sending.end("gone", None)
    sending.send_all()
    assert sent == ["end of gone", "b"]


def test_the_thread_sends_all_in_order_however_words_come(sending_type: Any) -> None:
    sent: dict[int, list[int]] = {}
    messages = 0
    done = threading.Semaphore(0)

    def send(stream: int, found: list[Word]) -> None:
        nonlocal messages
        messages += 1
        sent.setdefault(stream, []).extend(word.token for word in found)

    sending = sending_type(send, lambda stream, failure: done.release())
    threading.Thread(target=sending.run, daemon=True).start()
    for token in range(500):
        for stream in range(4):
            sending.word(stream, *words(token))
    for stream in range(4):
        sending.end(stream, None)
    for _ in range(4):
        assert done.acquire(timeout=60)
    assert sent == {stream: list(range(500)) for stream in range(4)}
    assert messages <= 2000
