"""The versions of a model that Triton is to load, as its private directory of links says."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving.config import CONFIG_FILE
from bilateral_serving.repository.entries import existing_config
from bilateral_serving.server.processes.scratch import forbid_bytecode


def pinned_versions(model: Path) -> frozenset[int]:
    """Return the versions that a model's config.pbtxt wants served whatever is rolled out."""
    config = existing_config(model)
    assert config is not None
    policy, there = config.version_policy, configs.version_directories(model)
    if policy.HasField("all"):
        return frozenset(there)
    return frozenset(policy.specific.versions).intersection(there)


def link_versions(model: Path, links: Path, versions: Collection[int]) -> str:
    """Make the links of a model name these versions, and return the configuration of before.

    Args:
        model: The model's directory in the repository.
        links: Its directory of links.
        versions: The versions to load.

    Raises:
        UserError: One is not in the repository, or the configuration is not valid.
    """
    there = configs.version_directories(model)
    if missing := sorted(set(versions).difference(there)):
        raise UserError(
            f"model '{model.name}' has no version {', '.join(map(str, missing))}",
            f"It has: {', '.join(map(str, there)) or 'none'}.",
        )
    config = existing_config(model)
    assert config is not None
    config.version_policy.CopyFrom(configs.version_policy(",".join(map(str, sorted(versions)))))
    before = (links / CONFIG_FILE).read_text(encoding="utf-8")
    restore_links(links, configs.write(config), model, versions)
    return before


def restore_links(links: Path, configuration: str, model: Path, versions: Collection[int]) -> None:
    """Give the links a configuration, whole or not at all, and exactly these versions."""
    for number in versions:
        if not (links / str(number)).is_symlink():
            (links / str(number)).symlink_to((model / str(number)).absolute())
            forbid_bytecode(model / str(number))
    draft = links / f"{CONFIG_FILE}.draft"
    draft.write_text(configuration, encoding="utf-8")
    draft.replace(links / CONFIG_FILE)
    # Triton reads no directory of a model of which a link leads nowhere.
    for link in links.iterdir():
        if link.name.isdecimal() and int(link.name) not in versions:
            link.unlink()
