"""Deployment values: what a repository cannot know, each with its default, in one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bilateral_export.errors import UserError
from bilateral_export.files import require_file

# A label of DNS, as names of namespaces, Secrets and the like are.
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[1-9]\d*(m|[KMGT]i?)?$")]


class Values(BaseModel):
    """What a person may decide; everything else follows from the model.

    Attributes:
        image: The server's image. None: NVIDIA's, or the one that `bilateral deploy docker` builds.
        release: Triton release of NVIDIA's image, such as "25.05". None: the newest that loads the
            model.
        namespace: Where it runs.
        storage: Where the model repository lies: pvc://CLAIM[/PATH], s3://, gs:// or
            oci://IMAGE, whose /models it is.
        storage_secret: Secret with the variables that reading s3:// or gs:// needs.
        service_account: Service account of the pods. None: the namespace's default, without token.
        pull_secret: Secret that lets a node pull the image.
        min_replicas, max_replicas: Between which the autoscaler chooses.
        autoscaler: keda, or hpa with the Prometheus adapter.
        queue_ms: Mean milliseconds that a request may wait in Triton's queue before replicas are
            added.
        prometheus: Address of the Prometheus that KEDA asks.
        monitoring_namespace: Where Prometheus runs: the one caller of the metrics.
        client_namespaces: Whose pods may call the model. Empty: those of its own namespace.
        cpu: Cores that are asked for. None: as many as the model's threads.
        memory: Memory that is asked for. None: from the model's files.
        shm: Size of /dev/shm. None: from the model's inputs and outputs.
        drain_s: Seconds from a pod's removal from the addresses until the server is told to stop.
        stop_s: Seconds that requests under way then get.
        connection_age_s: Seconds after which NVIDIA's server asks a client to connect again, so
            that it finds new replicas.
        tls_secret: Secret of type kubernetes.io/tls for gRPC. None: the connection is in the clear
            inside the cluster, and the gateway ends TLS.
        client_ca: Whether `ca.crt` of that Secret must have signed every client's certificate.
        tokens_secret: Secret whose `tokens` are those that callers need. None: no token.
        otlp: Address of an OpenTelemetry collector, http://host:4318. None: no traces.
        publish: Where Docker and Compose listen on the machine, "host:port".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = Field(default=None, pattern=r"^\S+$")
    release: str | None = None
    namespace: Label = "default"
    storage: str = Field(default="pvc://models", pattern=r"^(pvc|s3|gs|oci)://[^/\s]+(/\S*)?$")
    storage_secret: Label | None = None
    service_account: Label | None = None
    pull_secret: Label | None = None
    min_replicas: int = Field(default=2, ge=1)
    max_replicas: int = Field(default=8, ge=1)
    autoscaler: Literal["keda", "hpa"] = "keda"
    queue_ms: int = Field(default=50, ge=1)
    prometheus: str = Field(
        default="http://prometheus-operated.monitoring.svc:9090", pattern=r"^https?://\S+$"
    )
    monitoring_namespace: Label = "monitoring"
    client_namespaces: tuple[Label, ...] = ()
    cpu: Quantity | None = None
    memory: Quantity | None = None
    shm: Quantity | None = None
    drain_s: int = Field(default=15, ge=0)
    stop_s: int = Field(default=30, ge=1)
    connection_age_s: int = Field(default=300, ge=1)
    tls_secret: Label | None = None
    client_ca: bool = False
    tokens_secret: Label | None = None
    otlp: str | None = Field(default=None, pattern=r"^http://[^/\s:]+:\d+$")
    publish: str = Field(default="127.0.0.1:8001", pattern=r"^\S+:\d+$")

    @model_validator(mode="after")
    def _fit_together(self) -> Values:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        if self.client_ca and self.tls_secret is None:
            raise ValueError("client_ca needs tls_secret")
        return self


def read_values(path: Path) -> Values:
    """Return the values of a YAML file; what it leaves out has its default.

    Raises:
        UserError: It cannot be read, is not YAML, or a value is unknown or not allowed.
    """
    require_file(path, "file of values")
    try:
        return Values.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}", "Correct it.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(
            f"{path}: {problem}", f"The values are {', '.join(Values.model_fields)}."
        ) from error
