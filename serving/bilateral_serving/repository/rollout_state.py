"""Rollout state: which version of each model answers, and which one is tried beside it.

It lies in the repository, so that it survives a restart, and is written by the server that carries
a rollout out, when it has worked. Models that are not in it are served as their config.pbtxt says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bilateral_export.errors import UserError
from bilateral_export.files import disk_errors, to_json
from bilateral_serving.repository.lock import writing
from bilateral_serving.repository.version_files import replace_text

STATE_FILE = ".rollouts.json"
# The server watches nothing meanwhile.
_WAIT_S = 10.0


class Trial(BaseModel):
    """A version that is tried beside the active one.

    Attributes:
        version: Its number.
        kind: "canary": it answers a share of the requests; "shadow": it gets copies of a share.
        share: That share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    kind: Literal["canary", "shadow"]
    share: float = Field(gt=0, le=1)


class ModelRollout(BaseModel):
    """What is served of one model.

    Attributes:
        active: The version that answers.
        previous: The one before it, to which a rollback returns; None: there was none.
        trial: What is tried; None: nothing is.
        loaded: The versions that are loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    active: int = Field(ge=1)
    previous: int | None = None
    trial: Trial | None = None
    loaded: tuple[int, ...]


class RolloutState(BaseModel):
    """The rollouts of a repository, by model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, ModelRollout] = {}


def read_state(repository: Path) -> RolloutState:
    """Return the rollouts of a repository; none if it has no file of them.

    Raises:
        UserError: The file is not one that this version of the project understands.
    """
    path = repository / STATE_FILE
    try:
        return RolloutState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return RolloutState()
    except (OSError, ValidationError) as error:
        raise UserError(
            f"{path} cannot be read as the state of rollouts: {error}",
            "Remove it to serve what each config.pbtxt says.",
        ) from error


def write_rollout(repository: Path, model: str, rollout: ModelRollout) -> None:
    """Write what is served of one model, whole or not at all, under the repository's lock.

    Raises:
        UserError: The repository cannot be written, or another command does not end.
    """
    with writing(repository, _WAIT_S) as staging, disk_errors(repository):
        state = read_state(repository)
        changed = state.model_copy(update={"models": {**state.models, model: rollout}})
        replace_text(repository / STATE_FILE, to_json(changed), staging)
