"""What a rollout command asks the supervisor of a server, and its answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from bilateral_serving.front_door.shadow import Comparison
from bilateral_serving.repository.rollout_state import ModelRollout

Action = Literal["promote", "rollback", "canary", "shadow", "status"]


class Order(BaseModel):
    """A rollout command.

    Attributes:
        action: What to do.
        model: With which model.
        version: The version; None: the one that the state names (rollback).
        share: Of a canary's requests or a shadow's copies.
        gap: Whether the old version may be unloaded before the new one is loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    model: str
    version: int | None = Field(default=None, ge=1)
    share: float = Field(default=1.0, gt=0, le=1)
    gap: bool = False


class Outcome(BaseModel):
    """What came of it.

    Attributes:
        repository: The repository that the server serves.
        rollout: What is served of the model now; None: as its config.pbtxt says.
        comparison: How the answers of two versions compare, if there are two.
        load_s: Seconds that loading took; 0 if nothing was loaded.
        gap_s: Seconds of it without a version that answers.
        problem: Why nothing was changed; "" if it was done.
        fix: What to do about that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str = ""
    rollout: ModelRollout | None = None
    comparison: Comparison | None = None
    load_s: float = 0.0
    gap_s: float = 0.0
    problem: str = ""
    fix: str = ""
