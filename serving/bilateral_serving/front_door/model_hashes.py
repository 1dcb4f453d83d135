"""The SHA-256 of the model files, as the repository's configurations have them."""

from __future__ import annotations

import json
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE, MODEL_FILES


class ModelHashes:
    """Looks up each version once; only to be asked about models that have answered.

    Args:
        repository: The model repository; None: nothing is known.
    """

    def __init__(self, repository: Path | None) -> None:
        self._repository = repository
        self._found: dict[tuple[str, str], str | None] = {}

    def get(self, model: str, version: str) -> str | None:
        """Return a version's SHA-256; None where its configuration does not say it."""
        if (model, version) not in self._found:
            self._found[model, version] = self._read(model, version)
        return self._found[model, version]

    def _read(self, model: str, version: str) -> str | None:
        if self._repository is None or "/" in model or model.startswith("."):
            return None
        path = self._repository / model / CONFIG_FILE
        try:
            config = configs.read(path)
            text = config.parameters[f"provenance/{version}"].string_value
            files: dict[str, str] = json.loads(text or "{}").get("files", {})
        except (OSError, UserError, ValueError):
            return None
        return next((files[name] for name in MODEL_FILES.values() if name in files), None)
