"""Grafana's dashboard of a model."""

from __future__ import annotations

from bilateral_serving.deploy.container import Document
from bilateral_serving.deploy.facts import Facts
from bilateral_serving.deploy.queries import queries
from bilateral_serving.deploy.values import Values

_PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
_WIDTH, _HEIGHT = 12, 8


def dashboard(facts: Facts, values: Values) -> Document:
    """Return the dashboard as Grafana imports it; it asks for the data source then."""
    panels = [
        _panel(number, title, unit, expressions)
        for number, (title, unit, expressions) in enumerate(_shown(facts, values))
    ]
    return {
        "uid": f"bilateral-{facts.slug}"[:40],
        "title": f"Model {facts.name}",
        "tags": ["bilateral", "triton"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus"}
            ]
        },
        "panels": panels,
    }


def expressions(document: Document) -> list[str]:
    """Return every expression that a dashboard asks."""
    return [target["expr"] for panel in document["panels"] for target in panel["targets"]]


def _shown(facts: Facts, values: Values) -> list[tuple[str, str, dict[str, str]]]:
    """Return title, unit and expressions, by their legend, of each panel."""
    ask = queries(facts, values)
    shown = [
        ("Requests", "reqps", {"answered": ask.answered, "failed": ask.failed()}),
        (
            "Time in the server, mean a request",
            "ms",
            {phase.replace("_", " "): ask.per_request_ms(phase) for phase in _PHASES},
        ),
        ("Requests that wait", "short", {"waiting": ask.waiting}),
        ("Rows an execution", "short", {"rows": ask.batch}),
        ("Replicas", "short", {"answering": ask.replicas}),
        (
            "Machine's memory in use",
            "bytes",
            {"{{instance}}": ask.of_server("nv_cpu_memory_used_bytes")},
        ),
    ]
    if facts.gpu:
        shown += [
            ("GPU busy", "percentunit", {"{{instance}}": ask.of_server("nv_gpu_utilization")}),
            ("GPU memory", "bytes", {"{{instance}}": ask.of_server("nv_gpu_memory_used_bytes")}),
        ]
    return shown


def _panel(number: int, title: str, unit: str, asked: dict[str, str]) -> Document:
    source = {"type": "prometheus", "uid": "${source}"}
    row, column = divmod(number, 2)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": source,
                "expr": expr,
                "legendFormat": key,
            }
            for index, (key, expr) in enumerate(asked.items())
        ],
    }
