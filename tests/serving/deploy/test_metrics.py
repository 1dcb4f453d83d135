"""A real Prometheus reads a real server: every query that is written has an answer."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import promql_parser
import pytest
import yaml
from tests.builders.waiting import eventually
from tests.serving.deploy.models import facts
from tests.serving.server.live_processes import free_ports

from bilateral_serving.client import Client
from bilateral_serving.deploy.alerts import alert_groups
from bilateral_serving.deploy.compose import alerts, prometheus
from bilateral_serving.deploy.dashboard import dashboard, expressions
from bilateral_serving.deploy.queries import queries
from bilateral_serving.deploy.scaling import adapter_rules, kserve_metrics, scaled_object
from bilateral_serving.server import ServerOptions, running


@dataclass(frozen=True)
class Watched:
    """A server under a little load, and the Prometheus that reads it."""

    url: str
    served: Path
    client: Client

    def load(self) -> None:
        """Ask the model once; rates are of what goes on."""
        self.client.infer("quadrants", {"pixel_values": np.zeros((1, 1, 2, 2), np.float32)})

    def ask(self, expression: str) -> list[float]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}") as answer:
            result = json.load(answer)["data"]["result"]
        return [float(one["value"][1]) for one in result]


@pytest.fixture(scope="module")
def watched(
    served: Path, tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]
) -> Iterator[Watched]:
    binary, folder = program("prometheus"), tmp_path_factory.mktemp("prometheus")
    grpc, metrics, port = free_ports(3)
    found, values = facts(served)
    config = prometheus(found, values, [f"127.0.0.1:{metrics}"])
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "alerts.yaml").write_text(yaml.safe_dump(alerts(found, values)))
    options = ServerOptions(served, models=("quadrants",), grpc_port=grpc, metrics_port=metrics)
    command = [
        binary,
        "--config.file=prometheus.yaml",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with running(options) as server, Client(server.url) as client:
        process = subprocess.Popen(command, cwd=folder)
        try:
            made = Watched(f"http://127.0.0.1:{port}", served, client)
            rated, end = queries(found, values).answered, time.monotonic() + 60
            while time.monotonic() < end:
                made.load()
                time.sleep(0.1)
                try:
                    if made.ask(f"{rated} > 0"):
                        break
                except OSError:
                    assert process.poll() is None
            else:
                pytest.fail("Prometheus saw no request in a minute")
            yield made
        finally:
            process.terminate()
            process.wait()


class TestTheQueriesHaveAnswers:
    def test_of_the_dashboard(self, watched: Watched) -> None:
        # A server without a GPU has no metrics of one.
        for expression in expressions(dashboard(*facts(watched.served))):

            def is_answered(expression: str = expression) -> bool:
                watched.load()
                answer = watched.ask(expression)
                return bool(answer) and all(math.isfinite(number) for number in answer)

            eventually(is_answered)

    def test_of_the_alerts_which_do_not_fire(self, watched: Watched) -> None:
        for rule in alert_groups(*facts(watched.served, min_replicas=1))[0]["rules"]:
            assert not watched.ask(rule["expr"]), rule["alert"]
            # What is compared is there: the alert is silent because all is well.
            about = rule["expr"].rpartition(" > " if " > " in rule["expr"] else " == ")[0]
            if rule["alert"] in ("BilateralFailing", "BilateralQueueing"):
                eventually(lambda about=about: watched.ask(about))

    def test_of_the_autoscalers(self, watched: Watched) -> None:
        found, values = facts(watched.served)
        asked = [t["metadata"]["query"] for t in scaled_object(found, values)["spec"]["triggers"]]
        kserve = [m["external"]["metric"]["query"] for m in kserve_metrics(found, values)]
        adapter = [r["metricsQuery"] for r in adapter_rules(found, values)["rules"]["external"]]
        assert asked == kserve == adapter
        for query in asked:
            (value,) = eventually(lambda query=query: watched.ask(query))
            assert 0 <= value < 1000

    def test_but_not_one_about_a_metric_that_is_not_there(self, watched: Watched) -> None:
        ask = queries(*facts(watched.served))
        assert not watched.ask(ask.rate("nv_inference_request_sucess"))

    def test_and_none_about_a_model_that_is_not_there(self, watched: Watched) -> None:
        """No metrics must not look like an empty queue: the autoscaler would shrink."""
        found, values = facts(watched.served, "engine")
        for trigger in scaled_object(found, values)["spec"]["triggers"]:
            assert not watched.ask(trigger["metadata"]["query"])


@pytest.mark.parametrize("name", ["quadrants", "engine"])
def test_every_query_is_promql(served: Path, name: str) -> None:
    found = facts(served, name)
    rules = [rule["expr"] for rule in alert_groups(*found)[0]["rules"]]
    for expression in (*rules, *expressions(dashboard(*found))):
        promql_parser.parse(expression)
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse("sum(rate(x[1m])")
