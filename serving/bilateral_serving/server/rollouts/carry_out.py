"""Rollouts carried out by the supervisor's thread, between two looks at the server's health.

The order of the steps is such that a failure, or a kill, at any point leaves the version of before
answering: load beside it, ask for an answer, write the state, and only then change the route.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors, to_json, write_text
from bilateral_serving.config import version_directories
from bilateral_serving.front_door.routing import COMPARISONS_FILE, ROUTES_FILE, Route, Routes
from bilateral_serving.front_door.shadow import Comparison, Comparisons
from bilateral_serving.repository import show
from bilateral_serving.repository.rollout_state import (
    ModelRollout,
    Trial,
    read_state,
    write_rollout,
)
from bilateral_serving.server.rollouts.control import Asked
from bilateral_serving.server.rollouts.links import link_versions, pinned_versions, restore_links
from bilateral_serving.server.rollouts.memory import available_bytes, needed_bytes
from bilateral_serving.server.rollouts.messages import Order, Outcome
from bilateral_serving.server.upstream import Upstream

_MIB = 1 << 20


class Serving(Protocol):
    """What a rollout needs of the server that runs (`Service`)."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are served."""

    def is_direct(self) -> bool:
        """Return whether callers connect to tritonserver itself."""

    def ready_versions(self, model: str) -> tuple[int, ...]:
        """Return the versions of a model that answer."""

    def processes_of(self, model: str) -> tuple[int, ...]:
        """Return the processes of a model."""

    def settle(
        self,
        call: Callable[[Upstream], Any],
        stop: threading.Event,
        reloads: str | None = None,
    ) -> None:
        """Make a call of the supervisor's own and wait for its end, or raise `UserError`."""


class Rollouts:
    """The rollouts of one server.

    Args:
        repository: The repository that it serves.
        models: The directory of links that Triton sees.
        directory: Where the front door looks for routes.
    """

    def __init__(self, repository: Path, models: Path, directory: Path) -> None:
        self._repository, self._models, self._directory = repository, models, directory
        directory.mkdir()
        self._state: dict[str, ModelRollout] = {}
        self._away: str | None = None
        for name, rollout in read_state(repository).models.items():
            if (models / name).is_dir() and self._is_whole(name, rollout):
                link_versions(repository / name, models / name, rollout.loaded)
                self._state[name] = rollout
        self._write_routes()

    def take(
        self, asked: queue.SimpleQueue[Asked], serving: Serving, stop: threading.Event
    ) -> bool:
        """Carry out an order if there is one; returns whether models were loaded or unloaded."""
        try:
            one = asked.get_nowait()
        except queue.Empty:
            return False
        try:
            with disk_errors(self._directory):
                outcome = self._carry_out(one.order, serving, stop)
        except UserError as error:
            outcome = Outcome(problem=error.problem, fix=error.fix or "")
        one.outcome.put(outcome)
        return one.order.action != "status"

    def end_trial(self, model: str) -> int | None:
        """End the trial of a model at whose fault the server has to start again.

        To be called while tritonserver does not run. That the end of a trial cannot be written
        into the repository is no reason to serve it on.

        Returns:
            The version that is not tried any more; None if none was, or there is no room for a
            configuration without it.
        """
        rollout = self._state.get(model)
        if rollout is None or rollout.trial is None or not (self._models / model).is_dir():
            return None
        tried = rollout.trial.version
        loaded = tuple(v for v in rollout.loaded if v != tried) or (rollout.active,)
        after = rollout.model_copy(update={"trial": None, "loaded": loaded})
        try:
            link_versions(self._repository / model, self._models / model, loaded)
            self._state[model] = after
            self._write_routes()
        except (UserError, OSError):
            self._state[model] = rollout
            return None
        with contextlib.suppress(UserError):
            write_rollout(self._repository, model, after)
        return tried

    def _carry_out(self, order: Order, serving: Serving, stop: threading.Event) -> Outcome:
        now = self._now(order, serving)
        if order.action == "status":
            return self._outcome(order.model)
        if order.action == "rollback" and now.trial is not None:
            self._settle_on(order.model, now.model_copy(update={"trial": None}))
            return self._outcome(order.model)
        version = self._wanted(order, now)
        # Without a route Triton answers with the newest version as soon as it is loaded.
        self._state.setdefault(order.model, now)
        self._write_routes()
        began = time.monotonic()
        loaded, gap_s = self._load(order, version, now, serving, stop)
        load_s = time.monotonic() - began if loaded != now.loaded else 0.0
        if order.action in ("canary", "shadow"):
            trial = Trial.model_validate(
                {"version": version, "kind": order.action, "share": order.share}
            )
            after = now.model_copy(update={"trial": trial, "loaded": loaded})
        else:
            previous = now.previous if version == now.active else now.active
            after = ModelRollout(active=version, previous=previous, loaded=loaded)
        (self._directory / COMPARISONS_FILE).unlink(missing_ok=True)
        self._settle_on(order.model, after)
        return self._outcome(order.model, load_s, gap_s)

    def _now(self, order: Order, serving: Serving) -> ModelRollout:
        if serving.is_direct():
            raise UserError(
                "this server was started with --direct, and versions are chosen in the front door",
                "Start it without --direct; or serve the version with `bilateral repository add"
                " --versions` and start it again.",
            )
        if order.model not in serving.models:
            raise UserError(
                f"this server does not serve model '{order.model}'",
                f"It serves: {', '.join(serving.models)}.",
            )
        if (known := self._state.get(order.model)) is not None:
            return known
        ready = serving.ready_versions(order.model)
        if not ready:
            raise UserError(
                f"no version of '{order.model}' answers now", "The server's log says why."
            )
        return ModelRollout(active=max(ready), loaded=tuple(sorted(ready)))

    @staticmethod
    def _wanted(order: Order, now: ModelRollout) -> int:
        version = order.version
        if order.action == "rollback" and version is None:
            version = now.previous
        if version is None:
            raise UserError(
                f"no version of '{order.model}' was served before {now.active}",
                "Name the version to return to.",
            )
        if version == now.active and (order.action != "promote" or now.trial is None):
            raise UserError(
                f"version {version} of '{order.model}' answers already", "Name another version."
            )
        return version

    def _load(
        self,
        order: Order,
        version: int,
        now: ModelRollout,
        serving: Serving,
        stop: threading.Event,
    ) -> tuple[tuple[int, ...], float]:
        """Have a version answer beside the active one; returns what is loaded, and the gap."""
        name = order.model
        source, links = self._repository / name, self._models / name
        if version in now.loaded:
            serving.settle(lambda upstream: upstream.ask_version(name, version), stop)
            return now.loaded, 0.0
        pinned = pinned_versions(source)
        kept = pinned if order.gap else pinned | {now.active}
        loaded = tuple(sorted({version, *kept}))
        if not order.gap:
            self._check_memory(name, now, loaded, serving)
        before = link_versions(source, links, loaded)
        began = time.monotonic()
        try:
            if order.gap:
                self._set_away(name)
                serving.settle(lambda upstream: upstream.unload(name), stop, name)
            serving.settle(lambda upstream: upstream.load(name), stop, name)
            serving.settle(lambda upstream: upstream.ask_version(name, version), stop)
        except UserError as error:
            restore_links(links, before, source, now.loaded)
            try:
                serving.settle(lambda upstream: upstream.load(name), stop, name)
            except UserError as again:  # the supervisor starts the server again, as it was
                raise UserError(f"{error.problem}; then {again.problem}", error.fix) from error
            finally:
                self._set_away(None)
            kept_said = f"Version {now.active} still answers."
            raise UserError(
                f"version {version} of '{name}' is not served: {error.problem}", kept_said
            ) from error
        return loaded, time.monotonic() - began if order.gap else 0.0

    def _check_memory(
        self, name: str, now: ModelRollout, loaded: tuple[int, ...], serving: Serving
    ) -> None:
        there = show(name, self._repository).versions
        sizes = {version.number: version.size for version in there if version.number in loaded}
        needed = needed_bytes(serving.processes_of(name), now.loaded, sizes)
        free = available_bytes()
        if free is not None and needed > free:
            raise UserError(
                f"memory does not hold both versions of '{name}': loading takes about"
                f" {needed // _MIB} MiB and {free // _MIB} MiB are free",
                "With --gap the old version is unloaded first; requests then wait for as long as"
                " the new one takes to load.",
            )

    def _settle_on(self, model: str, rollout: ModelRollout) -> None:
        write_rollout(self._repository, model, rollout)
        self._state[model] = rollout
        self._away = None
        self._write_routes()

    def _set_away(self, model: str | None) -> None:
        self._away = model
        self._write_routes()

    def _write_routes(self) -> None:
        routes = {name: _route(rollout) for name, rollout in self._state.items()}
        if self._away is not None:
            known = routes.get(self._away, Route.model_validate({"active": 1}))
            routes[self._away] = known.model_copy(update={"away": True})
        write_text(self._directory / ROUTES_FILE, to_json(Routes(models=routes)))

    def _outcome(self, model: str, load_s: float = 0.0, gap_s: float = 0.0) -> Outcome:
        rollout = self._state.get(model)
        return Outcome(
            repository=str(self._repository),
            rollout=rollout,
            comparison=self._comparison(model, rollout),
            load_s=load_s,
            gap_s=gap_s,
        )

    def _comparison(self, model: str, rollout: ModelRollout | None) -> Comparison | None:
        try:
            text = (self._directory / COMPARISONS_FILE).read_bytes()
            found = Comparisons.model_validate_json(text).models.get(model)
        except (OSError, ValidationError):
            return None
        pair = rollout and rollout.trial and (rollout.active, rollout.trial.version)
        return found if found and (found.active, found.candidate) == pair else None

    def _is_whole(self, name: str, rollout: ModelRollout) -> bool:
        """Return whether what was served is still in the repository."""
        there = version_directories(self._repository / name)
        return rollout.active in rollout.loaded and set(rollout.loaded) <= set(there)


def _route(rollout: ModelRollout) -> Route:
    if (trial := rollout.trial) is None:
        return Route.model_validate({"active": rollout.active})
    share = {"canary": "share", "shadow": "copied"}[trial.kind]
    return Route.model_validate(
        {"active": rollout.active, "candidate": trial.version, share: trial.share}
    )
