"""The server's container: image, command line, probes, limits and mounts."""

from __future__ import annotations

from typing import Any

from bilateral_export import __version__
from bilateral_serving.access import HTTP_HEADER
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.values import Values

Document = dict[str, Any]

# The ports that KServe's runtimes use; a port's name with "grpc" in it makes the gRPC route.
GRPC, HTTP, METRICS = 9000, 8080, 8002
USER = 1000
# Where the Secrets are mounted.
TLS, TOKENS = "/etc/bilateral/tls", "/etc/bilateral/tokens"
# Where our image for plans that need the plugin has it.
PLUGINS = "/opt/bilateral/lib"
# Holds the process number of `bilateral serve` while it is ready.
_READY = "/tmp/bilateral-ready"
# What managing a server is; closed to whom the token of the admin Secret is not known.
_CLOSED = "shared-memory,model-config,model-repository,statistics,trace,logging"
_ADMIN = "BILATERAL_ADMIN_TOKEN"


def image(facts: Facts, values: Values) -> str:
    """Return the image that serves the model."""
    if values.image is not None:
        return values.image
    if facts.own_image:
        return f"bilateral-serve:{__version__}"
    return f"bilateral-serve:{facts.release.name}" if facts.plugin else nvidia(facts)


def nvidia(facts: Facts) -> str:
    """Return NVIDIA's image of the release."""
    return f"nvcr.io/nvidia/tritonserver:{facts.release.name}-py3"


def admin_secret(facts: Facts) -> str | None:
    """Return the name of the Secret whose `token` manages the server; ours makes its own."""
    return None if facts.own_image else f"{facts.slug}-admin"


def container(facts: Facts, values: Values, models: str) -> Document:
    """Return the container as Kubernetes and KServe describe it.

    Args:
        facts: Of the model.
        values: The deployment's.
        models: Path of the model repository in it.
    """
    command = serve_command if facts.own_image else triton_command
    return {
        "name": "server",
        "image": image(facts, values),
        "command": command(facts, values, models),
        **({} if facts.own_image else {"env": [_admin(facts)]}),
        "ports": [
            {"name": "grpc", "containerPort": GRPC, "protocol": "TCP"},
            {"name": "http", "containerPort": HTTP, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS, "protocol": "TCP"},
        ],
        "resources": resources(facts, values),
        **_probes(facts, values),
        # Addresses are withdrawn while the server still answers.
        "lifecycle": {"preStop": {"sleep": {"seconds": values.drain_s}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
            *([_mount("tls", TLS)] if values.tls_secret else []),
            *([_mount("tokens", TOKENS)] if values.tokens_secret and facts.own_image else []),
        ],
    }


def volumes(facts: Facts, values: Values) -> list[Document]:
    """Return the volumes that the container mounts, but for the model repository's."""
    memory = {"medium": "Memory", "sizeLimit": values.shm or mebibytes(facts.shm)}
    found: list[Document] = [
        {"name": "shm", "emptyDir": memory},
        {"name": "tmp", "emptyDir": {}},
    ]
    if values.tls_secret:
        found.append({"name": "tls", "secret": {"secretName": values.tls_secret}})
    if values.tokens_secret and facts.own_image:
        found.append({"name": "tokens", "secret": {"secretName": values.tokens_secret}})
    return found


def grace_s(values: Values) -> int:
    """Return the seconds after which a pod that should end is killed."""
    return values.drain_s + values.stop_s + 5


def serve_command(facts: Facts, values: Values, models: str) -> list[str]:
    """Return how our own image serves the model."""
    tls = [f"--tls-cert={TLS}/tls.crt", f"--tls-key={TLS}/tls.key"]
    return [
        "bilateral",
        "serve",
        facts.name,
        f"--repository={models}",
        "--host=0.0.0.0",
        f"--grpc-port={GRPC}",
        f"--http-port={HTTP}",
        f"--metrics-port={METRICS}",
        "--strict",
        f"--stop-timeout={values.stop_s}",
        f"--ready-file={_READY}",
        # Without a certificate the gateway ends TLS, and the network policy says who may connect.
        *(tls if values.tls_secret else ["--insecure"]),
        *([f"--client-ca={TLS}/ca.crt"] if values.client_ca else []),
        *([f"--tokens={TOKENS}/tokens"] if values.tokens_secret else []),
        *([f"--otlp={values.otlp}/v1/traces"] if values.otlp else []),
    ]


def triton_command(facts: Facts, values: Values, models: str) -> list[str]:
    """Return how NVIDIA's image serves the model, with the settings that its version knows."""
    closed = f"{_CLOSED}:{HTTP_HEADER}=$({_ADMIN})"
    command = [
        "tritonserver",
        f"--model-repository={models}",
        # Of a repository that holds more than this model.
        "--model-control-mode=explicit",
        f"--load-model={facts.name}",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        f"--exit-timeout-secs={values.stop_s}",
        f"--grpc-port={GRPC}",
        f"--http-port={HTTP}",
        f"--metrics-port={METRICS}",
        f"--grpc-max-connection-age={1000 * values.connection_age_s}",
        f"--grpc-max-connection-age-grace={1000 * values.stop_s}",
        f"--grpc-restricted-protocol={closed}",
        f"--http-restricted-api={closed}",
    ]
    if values.tls_secret:
        command += [
            "--grpc-use-ssl=1",
            f"--grpc-server-cert={TLS}/tls.crt",
            f"--grpc-server-key={TLS}/tls.key",
        ]
    if values.client_ca:
        command += [f"--grpc-root-cert={TLS}/ca.crt", "--grpc-use-ssl-mutual=1"]
    if facts.release.has_latency_histograms:
        command.append("--metrics-config=histogram_latencies=true")
    if facts.plugin:
        command.append(f"--backend-config=tensorrt,plugins={PLUGINS}/{facts.plugin}")
    if facts.host_code:
        command.append("--backend-config=tensorrt,version-compatible=true")
    if values.otlp:
        # Rate 0: only requests whose client sends `traceparent`.
        command += [
            "--trace-config=mode=opentelemetry",
            f"--trace-config=opentelemetry,url={values.otlp}/v1/traces",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=0",
        ]
    return command


def resources(facts: Facts, values: Values) -> Document:
    """Return what the container asks for and may take."""
    cores = values.cpu or str(facts.cores or 1)
    asked = values.memory or mebibytes(facts.memory + facts.shm)
    # Half as much again: what is above it is a leak, and the kernel's to end.
    limit = values.memory or mebibytes((3 * facts.memory // 2) + facts.shm)
    found: Document = {
        "requests": {"cpu": cores, "memory": asked},
        "limits": {"memory": limit},
    }
    if facts.cores or values.cpu:
        found["limits"]["cpu"] = str(facts.cores + 1) if facts.cores and not values.cpu else cores
    if facts.gpu:
        found["limits"]["nvidia.com/gpu"] = "1"
    return found


def mebibytes(size: int) -> str:
    """Return a number of bytes as Kubernetes writes it."""
    return f"{-(-size >> 20)}Mi" if size % (1 << 20) == 0 else f"{(size >> 20) + 1}Mi"


def _probes(facts: Facts, values: Values) -> Document:
    """Return the probes: HTTP's, which the network policy keeps to the node.

    In our own image they ask the front door, and its supervisor sends each model a real inference
    a second. NVIDIA's image runs only backends in C++ here, which have no process that could die
    unseen. A node has no certificate: where every caller needs one, the readiness file says whether
    it is ready, and the port, which is open while the front door runs, whether it lives.
    """
    own_tls = facts.own_image and values.tls_secret is not None
    ready = f"/v2/models/{facts.name}/ready"

    def probe(path: str, seconds: int, failures: int) -> Document:
        asked: Document = {"httpGet": {"path": path, "port": "http"}}
        if own_tls:
            asked["httpGet"]["scheme"] = "HTTPS"
        if own_tls and values.client_ca:
            file = {"exec": {"command": ["sh", "-c", f"kill -0 $(cat {_READY})"]}}
            asked = file if path == ready else {"tcpSocket": {"port": "grpc"}}
        return {
            **asked,
            "periodSeconds": seconds,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }

    return {
        "startupProbe": probe(ready, 10, 30),
        "readinessProbe": probe(ready, 5, 2),
        "livenessProbe": probe("/v2/health/live", 10, 6),
    }


def _admin(facts: Facts) -> Document:
    secret = {"name": admin_secret(facts), "key": "token"}
    return {"name": _ADMIN, "valueFrom": {"secretKeyRef": secret}}


def _mount(name: str, path: str) -> Document:
    return {"name": name, "mountPath": path, "readOnly": True}
