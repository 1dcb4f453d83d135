"""How long before a call is made again, and how often in all."""

from __future__ import annotations

from typing import Any

import pytest
from tests.serving.server.live_processes import free_ports

from bilateral_serving.client import Client
from bilateral_serving.client.connection import Call, Connection
from bilateral_serving.client.deadline import Deadline
from bilateral_serving.client.retries import Retries


def test_pauses_double_and_are_spread() -> None:
    deadline = Deadline(10)
    assert Retries(2, chance=lambda: 1.0).pause(0, deadline) == pytest.approx(0.1)
    assert Retries(2, chance=lambda: 1.0).pause(1, deadline) == pytest.approx(0.2)
    assert Retries(2, chance=lambda: 0.0).pause(1, deadline) == pytest.approx(0.1)
    assert Retries(2).pause(2, deadline) is None


def test_never_beyond_the_deadline() -> None:
    assert Retries(2).pause(0, Deadline(0.04)) is None


def test_a_storm_is_bounded() -> None:
    retries, deadline, made = Retries(2), Deadline(10), 0
    for _ in range(1000):
        for attempt in range(2):
            made += retries.pause(attempt, deadline) is not None
    assert made == 10


def test_answers_pay_for_a_tenth() -> None:
    retries, made = Retries(2), 0
    for _ in range(1000):
        retries.answered()
        made += retries.spend()
    assert 100 <= made <= 111


def test_a_client_of_a_dead_server_soon_stops_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    start = Connection.start

    def counted(self: Connection, method: str, *rest: Any) -> Call:
        made.append(method)
        return start(self, method, *rest)

    monkeypatch.setattr(Connection, "start", counted)
    with Client(f"localhost:{free_ports(1)[0]}") as client:
        assert not any(client.is_ready() for _ in range(30))
    assert len(made) == 30 + 10
