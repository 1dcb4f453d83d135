"""A model on one machine with Docker Compose: servers, nginx before them, Prometheus beside."""

from __future__ import annotations

from bilateral_serving.deploy.alerts import alert_groups
from bilateral_serving.deploy.container import (
    GRPC,
    HTTP,
    METRICS,
    TLS,
    TOKENS,
    USER,
    Document,
    grace_s,
    image,
    mebibytes,
    resources,
)
from bilateral_serving.deploy.docker import command, needs_build
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.queries import job
from bilateral_serving.deploy.values import Values

NGINX = "nginxinc/nginx-unprivileged:1.27-alpine"
PROMETHEUS = "prom/prometheus:v3.5.0"
_READ_ONLY: Document = {
    "read_only": True,
    "tmpfs": ["/tmp"],
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "restart": "unless-stopped",
}


def names(facts: Facts, values: Values) -> list[str]:
    """Return the names of the servers."""
    return [f"{facts.slug}-{number}" for number in range(1, values.min_replicas + 1)]


def compose(facts: Facts, values: Values, repository: str) -> Document:
    """Return compose.yaml.

    Args:
        facts: Of the model.
        values: The deployment's.
        repository: Path of the model repository, from where compose.yaml lies.
    """
    servers = names(facts, values)
    return {
        "services": {
            **{name: _server(facts, values, repository) for name in servers},
            "nginx": {
                "image": NGINX,
                **_READ_ONLY,
                "ports": [f"{values.publish}:{GRPC}"],
                "volumes": ["./nginx.conf:/etc/nginx/nginx.conf:ro"],
                "depends_on": {name: {"condition": "service_healthy"} for name in servers},
            },
            "prometheus": {
                "image": PROMETHEUS,
                "restart": "unless-stopped",
                "ports": ["127.0.0.1:9090:9090"],
                "volumes": [
                    "./prometheus.yaml:/etc/prometheus/prometheus.yml:ro",
                    "./alerts.yaml:/etc/prometheus/alerts.yaml:ro",
                ],
            },
        },
    }


def prometheus(facts: Facts, values: Values, targets: list[str] | None = None) -> Document:
    """Return Prometheus' configuration.

    Args:
        facts: Of the model.
        values: The deployment's.
        targets: The servers' metrics, "host:port" each. None: those of the compose file.
    """
    found = targets or [f"{name}:{METRICS}" for name in names(facts, values)]
    return {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": job(facts, values), "static_configs": [{"targets": found}]}
        ],
    }


def alerts(facts: Facts, values: Values) -> Document:
    """Return Prometheus' file of rules."""
    return {"groups": alert_groups(facts, values)}


def _server(facts: Facts, values: Values, repository: str) -> Document:
    found: Document = {
        "image": image(facts, values),
        **_READ_ONLY,
        "user": f"{USER}:{USER}",
        "command": command(facts, values),
        "volumes": [f"{repository}:/models:ro"],
        "shm_size": values.shm or mebibytes(facts.shm).removesuffix("i"),
        "stop_grace_period": f"{grace_s(values)}s",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _health(facts)],
            "interval": "5s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "300s",
        },
        "deploy": {"resources": _resources(facts, values)},
    }
    if needs_build(facts, values):
        found["build"] = {"context": "."}
    if not facts.own_image:
        found["environment"] = ["BILATERAL_ADMIN_TOKEN"]
    if values.tls_secret:
        found["volumes"].append(f"./tls:{TLS}:ro")
    if values.tokens_secret and facts.own_image:
        found["volumes"].append(f"./tokens:{TOKENS}:ro")
    return found


def _health(facts: Facts) -> str:
    address = f"http://127.0.0.1:{HTTP}/v2/models/{facts.name}/ready"
    return f"import urllib.request; urllib.request.urlopen('{address}', timeout=4)"


def _resources(facts: Facts, values: Values) -> Document:
    limits = resources(facts, values)["limits"]
    found: Document = {"limits": {"memory": limits["memory"].removesuffix("i")}}
    if "cpu" in limits:
        found["limits"]["cpus"] = limits["cpu"]
    if facts.gpu:
        gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        found["reservations"] = {"devices": [gpu]}
    return found
