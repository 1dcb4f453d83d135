"""Alerts on a model: when each fires, and what to do then."""

from __future__ import annotations

from bilateral_serving.deploy.container import Document
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.queries import queries
from bilateral_serving.deploy.values import Values


def alert_groups(facts: Facts, values: Values) -> list[Document]:
    """Return Prometheus' groups of rules."""
    return [{"name": f"bilateral-{facts.slug}", "rules": list(_alerts(facts, values))}]


def _alerts(facts: Facts, values: Values) -> list[Document]:
    ask = queries(facts, values)

    def alert(
        name: str, expression: str, lasts: str, severity: str, summary: str, runbook: str
    ) -> Document:
        return {
            "alert": name,
            "expr": expression,
            "for": lasts,
            "labels": {"severity": severity, "model": facts.name},
            "annotations": {"summary": f"Model {facts.name}: {summary}", "runbook": runbook},
        }

    found = [
        alert(
            "BilateralDown",
            f"({ask.replicas} or vector(0)) == 0",
            "2m",
            "critical",
            "no replica answers Prometheus.",
            "kubectl describe and logs of its pods: image not pulled, Secret or volume missing,"
            " no node with such a GPU, or the model is refused (the log's last lines say why)."
            " Pods are well: look at the PodMonitor and the network policy.",
        ),
        alert(
            "BilateralReplicasMissing",
            f"0 < {ask.replicas} < {values.min_replicas}",
            "10m",
            "warning",
            f"fewer replicas than {values.min_replicas} answer.",
            "kubectl get pods: one that is pending lacks a node, one that restarts says why in"
            " `kubectl logs --previous`; OOMKilled: raise `memory` in the values.",
        ),
        alert(
            "BilateralFailing",
            f"{ask.failed_share('5m')} > 0.01",
            "5m",
            "critical",
            "more than 1 % of the requests fail.",
            "The label `reason` of nv_inference_request_failure says of what: REJECTED, the queue"
            " is full: add replicas; BACKEND, the runtime refuses inputs: see the server's log;"
            " OTHER, requests do not fit the model: see the callers. If it began with a rollout:"
            " kubectl rollout undo.",
        ),
        alert(
            "BilateralStuck",
            f"{ask.waiting} > 0 and {ask.answered} == 0",
            "2m",
            "critical",
            "requests wait and none is answered.",
            "kubectl logs of the pods, then delete the pod that has the waiting requests: another"
            " takes its place before it ends.",
        ),
        alert(
            "BilateralQueueing",
            f"({ask.per_request_ms('queue', '5m')}) > {2 * values.queue_ms}",
            "10m",
            "warning",
            f"requests wait longer than {2 * values.queue_ms} ms.",
            "Replicas are at max_replicas (kubectl get hpa): raise it. They are not: the"
            " autoscaler does not see Prometheus (kubectl describe its object), or nodes are full"
            " (kubectl get pods, Pending).",
        ),
    ]
    if facts.gpu:
        used, total = (ask.of_server(f"nv_gpu_memory_{k}_bytes") for k in ("used", "total"))
        found.append(
            alert(
                "BilateralGpuMemory",
                f"max({used} / {total}) > 0.95",
                "10m",
                "warning",
                "a GPU's memory is all but full.",
                "Fewer instances (repository add --instances), a smaller largest batch, or a GPU"
                " that is not shared; then roll out again.",
            )
        )
    return found
