"""The private socket between rollout commands and the supervisor of a server.

It lies in the directory of tokens, which only this user can enter, and is named after the gRPC
port. One command at a time is carried out; who comes meanwhile is told which one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from bilateral_export.errors import UserError
from bilateral_serving.access import private_directory
from bilateral_serving.server.rollouts.messages import Order, Outcome

_LONGEST = 64 << 10
_READ_S = 10.0


@dataclass(frozen=True)
class Asked:
    """An order, and where its outcome goes."""

    order: Order
    outcome: queue.SimpleQueue[Outcome] = field(default_factory=queue.SimpleQueue)


class Control:
    """Hands orders to the supervisor's thread, one at a time."""

    def __init__(self) -> None:
        self.asked: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._one = threading.Lock()
        self._order: Order | None = None

    def answer(self, connection: socket.socket) -> None:
        """Read one order and send its outcome."""
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_READ_S)
            try:
                order = Order.model_validate_json(_read(connection))
            except ValidationError:
                problem = "the command is of another version of bilateral-serve"
                fix = "Use the version that serves."
                outcome = Outcome(problem=problem, fix=fix)
            else:
                outcome = self._carried_out(order)
            connection.sendall(outcome.model_dump_json().encode())

    def _carried_out(self, order: Order) -> Outcome:
        if order.action != "status" and not self._one.acquire(blocking=False):
            busy = self._order
            said = f"{busy.action} {busy.model} {busy.version or ''}".strip() if busy else "another"
            return Outcome(
                problem=f"another command is under way on this server: {said}",
                fix="Wait for it, look at `bilateral repository rollouts`, and decide again.",
            )
        try:
            if order.action != "status":
                self._order = order
            asked = Asked(order)
            self.asked.put(asked)
            return asked.outcome.get()
        finally:
            if order.action != "status":
                self._order = None
                self._one.release()


@contextlib.contextmanager
def listening(grpc_port: int) -> Iterator[Control]:
    """Take orders for the server on a port until the end of the block."""
    control, path = Control(), control_socket(grpc_port)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with _short(path) as name:
            listener.bind(name)
        listener.listen()
        thread = threading.Thread(
            target=_accept, args=(listener, control), name="rollouts", daemon=True
        )
        thread.start()
        try:
            yield control
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def ask(grpc_port: int, order: Order) -> Outcome:
    """Have the server on a port carry an order out; waits as long as that takes.

    Raises:
        UserError: No server of this user listens there, it ended meanwhile, or it refused.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _short(control_socket(grpc_port)) as name:
                connection.connect(name)
            connection.sendall(order.model_dump_json().encode())
            connection.shutdown(socket.SHUT_WR)
            text = _read(connection)
        except OSError as error:
            raise UserError(
                f"no server of this user takes rollouts on port {grpc_port}",
                "Start one with `bilateral serve`, or name its port with --grpc-port.",
            ) from error
    if not text:
        raise UserError(
            "the server ended while it carried this out",
            "Its log says why; start it again, and it serves what it served before.",
        )
    outcome = Outcome.model_validate_json(text)
    if outcome.problem:
        raise UserError(outcome.problem, outcome.fix)
    return outcome


def control_socket(grpc_port: int) -> Path:
    """Return the path of the control socket of the server on a gRPC port.

    Raises:
        UserError: The directory of tokens belongs to somebody else.
    """
    return private_directory() / f"{grpc_port}.control"


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a short name of a socket's path: the kernel takes 107 characters at most."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _accept(listener: socket.socket, control: Control) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=control.answer, args=(connection,), daemon=True).start()


def _read(connection: socket.socket) -> bytes:
    text = b""
    while len(text) < _LONGEST and (part := connection.recv(_LONGEST)):
        text += part
    return text
