"""The rollout commands, which the supervisor of a running server carries out."""

from __future__ import annotations

from pathlib import Path

from bilateral_serving.rollout.gate import check_gate
from bilateral_serving.server.rollouts.control import ask
from bilateral_serving.server.rollouts.messages import Order, Outcome


def promote(
    name: str,
    version: int,
    *,
    grpc_port: int = 8001,
    parity: Path | None = None,
    unjudged: bool = False,
    gap: bool = False,
) -> Outcome:
    """Have a version answer the requests that name none, and return what is served then.

    It goes through the gate, is loaded beside the old one, and answers an inference of the server's
    own first. Whatever fails before that leaves the old one. The old version stays loaded for a
    rollback.

    Args:
        name: The model.
        version: Its version.
        grpc_port: Port of the server, one of this user on this machine.
        parity: As in `check_gate`.
        unjudged: As in `check_gate`.
        gap: Unload the old version before the new one is loaded; requests wait meanwhile.

    Raises:
        UserError: The gate or the server refused, or another command is under way there.
    """
    order = Order(action="promote", model=name, version=version, gap=gap)
    return _through_the_gate(order, grpc_port, parity, unjudged)


def canary(
    name: str,
    version: int,
    share: float,
    *,
    grpc_port: int = 8001,
    parity: Path | None = None,
    unjudged: bool = False,
) -> Outcome:
    """Have a version answer a share of the requests, and compare its answers; see `promote`."""
    order = Order(action="canary", model=name, version=version, share=share)
    return _through_the_gate(order, grpc_port, parity, unjudged)


def shadow(
    name: str,
    version: int,
    share: float = 1.0,
    *,
    grpc_port: int = 8001,
    parity: Path | None = None,
    unjudged: bool = False,
) -> Outcome:
    """Have a version get copies of a share of the requests, and compare; see `promote`."""
    order = Order(action="shadow", model=name, version=version, share=share)
    return _through_the_gate(order, grpc_port, parity, unjudged)


def rollback(
    name: str, version: int | None = None, *, grpc_port: int = 8001, gap: bool = False
) -> Outcome:
    """End a canary or shadow; without one, have the version of before answer again.

    There is no gate: what answered before may answer again, once it has answered the server.

    Args:
        name: The model.
        version: The version to return to; None: the one before the active one.
        grpc_port: As in `promote`.
        gap: As in `promote`.

    Raises:
        UserError: As `promote`, or no version answered before.
    """
    return ask(grpc_port, Order(action="rollback", model=name, version=version, gap=gap))


def status(name: str, *, grpc_port: int = 8001) -> Outcome:
    """Return what a running server serves of a model, and how its versions compare.

    Raises:
        UserError: No server of this user runs there, or it does not serve the model.
    """
    return ask(grpc_port, Order(action="status", model=name))


def _through_the_gate(order: Order, grpc_port: int, parity: Path | None, unjudged: bool) -> Outcome:
    repository = Path(ask(grpc_port, Order(action="status", model=order.model)).repository)
    assert order.version is not None
    check_gate(repository, order.model, order.version, parity=parity, unjudged=unjudged)
    return ask(grpc_port, order)
