"""Files of a deployment: rendered from the repository and the values, and written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text
from bilateral_serving.deploy.compose import alerts, compose, names, prometheus
from bilateral_serving.deploy.container import GRPC
from bilateral_serving.deploy.dashboard import dashboard
from bilateral_serving.deploy.docker import dockerfile, dockerignore
from bilateral_serving.deploy.facts import Facts, facts_of
from bilateral_serving.deploy.kserve import kserve
from bilateral_serving.deploy.kubernetes import kubernetes
from bilateral_serving.deploy.nginx import nginx_configuration
from bilateral_serving.deploy.scaling import adapter_rules
from bilateral_serving.deploy.values import Values, read_values

Kind = Literal["kserve", "kubernetes", "compose", "docker"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VALUES = "values.yaml"


@dataclass(frozen=True)
class Written:
    """What was written: the files, and what to know and to do next, one line each."""

    files: tuple[Path, ...]
    remarks: tuple[str, ...]


def write(
    kind: Kind, name: str, repository: Path, out: Path, values_file: Path | None = None
) -> Written:
    """Write the files that deploy a model.

    Args:
        kind: What they are for.
        name: The model.
        repository: The model repository.
        out: The directory to write to; made where there is none.
        values_file: The values. None: `values.yaml` in `out`, written with the defaults where it is
            not there.

    Raises:
        UserError: As `facts_of` and `read_values`; nothing was written then.
    """
    values = values_of(out, values_file)
    facts = facts_of(name, repository, values)
    files = render(kind, facts, values, repository, out)
    if values_file is None and not (out / VALUES).exists():
        files[VALUES] = to_yaml(values.model_dump(mode="json"))
    for file, text in files.items():
        write_text(out / file, text)
    return Written(tuple(out / file for file in files), facts.remarks)


def values_of(out: Path, values_file: Path | None) -> Values:
    """Return the values of a file, or those in a directory, or the defaults."""
    path = values_file or out / VALUES
    return Values() if values_file is None and not path.exists() else read_values(path)


def render(kind: Kind, facts: Facts, values: Values, repository: Path, out: Path) -> dict[str, str]:
    """Return the text of each file, by its name."""
    if kind not in KINDS:
        raise UserError(f"unknown kind '{kind}'", f"Use one of {', '.join(KINDS)}.")
    if kind == "docker":
        return {"Dockerfile": dockerfile(facts, values), ".dockerignore": dockerignore(facts)}
    if kind == "compose":
        where = os.path.relpath(repository.absolute(), out.absolute())
        servers = [f"{server}:{GRPC}" for server in names(facts, values)]
        return {
            "compose.yaml": to_yaml(compose(facts, values, where)),
            "nginx.conf": nginx_configuration(str(GRPC), servers),
            "prometheus.yaml": to_yaml(prometheus(facts, values)),
            "alerts.yaml": to_yaml(alerts(facts, values)),
            "dashboard.json": to_json(dashboard(facts, values)),
            **render("docker", facts, values, repository, out),
        }
    objects = kserve(facts, values) if kind == "kserve" else kubernetes(facts, values)
    files = {f"{kind}.yaml": to_yaml(*objects)}
    if kind == "kubernetes" and values.autoscaler == "hpa":
        files["adapter.yaml"] = to_yaml(adapter_rules(facts, values))
    return files


def to_yaml(*documents: Any) -> str:
    """Return the text of one YAML file, without anchors, in the order of the dictionaries."""
    text: str = yaml.dump_all(
        documents, Dumper=_Plain, sort_keys=False, width=100, allow_unicode=True
    )
    return text


class _Plain(yaml.SafeDumper):
    """A dumper that repeats what occurs twice, for people to read."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is written as a reference."""
        return True
