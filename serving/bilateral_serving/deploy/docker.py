"""The server's image: a small one of our own for the CPU, or NVIDIA's with the plugin."""

from __future__ import annotations

import json
import shlex

from bilateral_serving.deploy.container import (
    GRPC,
    HTTP,
    METRICS,
    PLUGINS,
    USER,
    nvidia,
    serve_command,
    triton_command,
)
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.values import Values

# The wheel has a stub of Triton's Python backend for each Python; this one is kept.
PYTHON = "3.11"
_OWN = """\
ARG BASE=python:{python}-slim-bookworm

# hadolint ignore=DL3006
FROM ${{BASE}} AS build
COPY wheels/ /wheels/
RUN python3 -m venv /opt/bilateral \\
    && /opt/bilateral/bin/pip install --no-cache-dir \\
        "$(echo /wheels/bilateral_serve-*.whl)[server,otel]" \\
    && /opt/bilateral/bin/pip uninstall --yes pip \\
    && find /opt/bilateral -path '*/python_backend_stubs/*' -name triton_python_backend_stub \\
        -not -path '*/{python}/*' -delete

# hadolint ignore=DL3006
FROM ${{BASE}}
COPY --from=build /opt/bilateral /opt/bilateral
ENV PATH=/opt/bilateral/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1
EXPOSE {ports}
USER {user}
CMD {command}
"""
_NVIDIA = """\
FROM {image}
{copy}EXPOSE {ports}
USER {user}
CMD {command}
"""


def dockerfile(facts: Facts, values: Values) -> str:
    """Return the Dockerfile; the model repository is mounted at /models, not part of the image."""
    common = {
        "ports": f"{GRPC} {HTTP} {METRICS}",
        "user": str(USER),
        "command": json.dumps(_shell(facts, values)),
    }
    if facts.own_image:
        return _OWN.format(python=PYTHON, **common)
    copy = f"COPY {facts.plugin} {PLUGINS}/{facts.plugin}\n" if facts.plugin else ""
    return _NVIDIA.format(image=nvidia(facts), copy=copy, **common)


def dockerignore(facts: Facts) -> str:
    """Return .dockerignore: everything but what the Dockerfile copies."""
    kept = "wheels" if facts.own_image else facts.plugin
    return "*\n" + (f"!{kept}\n" if kept else "")


def needs_build(facts: Facts, values: Values) -> bool:
    """Return whether the image is one that has to be built."""
    return values.image is None and (facts.own_image or facts.plugin is not None)


def command(facts: Facts, values: Values) -> list[str]:
    """Return the server's command as Compose takes it, which fills in the token."""
    token = "${BILATERAL_ADMIN_TOKEN:?is not set}"
    return _expanded(facts, values, token)


def _shell(facts: Facts, values: Values) -> list[str]:
    """Return the command as an image has it; the shell fills in the token."""
    if facts.own_image:
        return serve_command(facts, values, "/models")
    marker = "BILATERAL_TOKEN_HERE"
    words = shlex.join(_expanded(facts, values, marker))
    line = words.replace(marker, '"${BILATERAL_ADMIN_TOKEN:?is not set}"')
    return ["sh", "-c", f"exec {line}"]


def _expanded(facts: Facts, values: Values, token: str) -> list[str]:
    found = serve_command if facts.own_image else triton_command
    return [
        word.replace("$(BILATERAL_ADMIN_TOKEN)", token) for word in found(facts, values, "/models")
    ]
