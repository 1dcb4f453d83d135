"""Items that end the process that scores them, so that none is tried for ever.

Before a chunk is scored, its attempt is written down. From the third on it is scored item by item,
each written down before: an item during which two such processes ended gets a row that says so.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bilateral_serving.scoring.items import Item
from bilateral_serving.scoring.plan import FOLDER
from bilateral_serving.scoring.scorer import Scored, Scorer

_WHOLE = 2  # attempts at the whole chunk
_DEATHS = 2
KILLS = f"the process that scored it ended, {_DEATHS} times"


class Attempts:
    """The attempts at one part, kept in the plan's folder until it is written."""

    def __init__(self, folder: Path, part: str) -> None:
        self._file = folder / FOLDER / f"{part}.attempts"
        self._count = 0
        self._at: int | None = None
        self._deaths: Counter[int] = Counter()

    def score(self, scorer: Scorer, items: Sequence[Item]) -> list[Scored]:
        """Return the outcome for each item."""
        self._read()
        if self._at is not None:
            self._deaths[self._at] += 1
        self._count += 1
        self._write(None)
        if self._count <= _WHOLE:
            return scorer.score(items)
        scored = []
        for number, item in enumerate(items):
            if self._deaths[number] >= _DEATHS:
                scored.append(Scored(error=KILLS))
                continue
            self._write(number)
            scored += scorer.score([item])
        return scored

    def end(self) -> None:
        """Forget them: the part is written."""
        self._file.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            said = json.loads(self._file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return
        self._count, self._at = said["count"], said["at"]
        self._deaths = Counter({int(number): times for number, times in said["deaths"].items()})

    def _write(self, at: int | None) -> None:
        said = {"count": self._count, "at": at, "deaths": self._deaths}
        # A worker of a driver that was killed may still be at the same chunk.
        temporary = self._file.with_name(f".partial-{secrets.token_hex(8)}")
        temporary.write_text(json.dumps(said), encoding="ascii")
        temporary.replace(self._file)
