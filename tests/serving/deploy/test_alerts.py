"""Alerts with synthetic series: each fires when it must, and not otherwise. By promtool."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.serving.deploy.models import facts

from bilateral_serving.deploy.alerts import alert_groups

Program = Callable[[str], str]
JOB, MODEL = "default/engine", "engine"
OF_MODEL = f'job="{JOB}",model="{MODEL}"'
GIB = 1 << 30


def series(name: str, values: str, labels: str = OF_MODEL) -> dict[str, str]:
    return {"series": f"{name}{{{labels}}}", "values": values}


def failures(reason: str, values: str) -> dict[str, str]:
    return series("nv_inference_request_failure", values, f'{OF_MODEL},reason="{reason}"')


def up(instance: str, values: str) -> dict[str, str]:
    return series("up", values, f'job="{JOB}",instance="{instance}"')


# A minute is a step; 6000 requests a minute that each wait 2 ms, and two replicas.
WELL = [
    up("a", "1x60"),
    up("b", "1x60"),
    series("nv_inference_request_success", "0+6000x60"),
    series("nv_inference_queue_duration_us", "0+12000000x60"),
    series("nv_inference_pending_request_count", "3x60"),
    failures("BACKEND", "0x60"),
    failures("CANCELED", "0+3000x60"),
    series("nv_gpu_memory_used_bytes", f"{20 * GIB}x60", f'job="{JOB}",gpu_uuid="g"'),
    series("nv_gpu_memory_total_bytes", f"{40 * GIB}x60", f'job="{JOB}",gpu_uuid="g"'),
]


def instead(*changed: dict[str, str]) -> list[dict[str, str]]:
    names = {one["series"] for one in changed}
    return [*changed, *(one for one in WELL if one["series"] not in names)]


SICK = {
    "BilateralDown": (instead(up("a", "0x60"), up("b", "0x60")), "10m"),
    "BilateralReplicasMissing": (instead(up("b", "0x60")), "15m"),
    "BilateralFailing": (instead(failures("BACKEND", "0+120x60")), "20m"),
    "BilateralStuck": (instead(series("nv_inference_request_success", "5000x60")), "10m"),
    "BilateralQueueing": (
        instead(series("nv_inference_queue_duration_us", "0+1200000000x60")),
        "30m",
    ),
    "BilateralGpuMemory": (
        instead(series("nv_gpu_memory_used_bytes", f"{39 * GIB}x60", f'job="{JOB}",gpu_uuid="g"')),
        "15m",
    ),
}


@pytest.fixture(scope="module")
def rules(served: Path) -> list[dict[str, Any]]:
    return list(alert_groups(*facts(served, "engine")))


def promtool(
    program: Program, folder: Path, groups: list[dict[str, Any]], tests: list[dict[str, Any]]
) -> subprocess.CompletedProcess[str]:
    """`promtool test rules`, or `check rules` where there is nothing to test."""
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    unit = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "unit.yaml").write_text(yaml.safe_dump(unit))
    what = ["test", "rules", "unit.yaml"] if tests else ["check", "rules", "rules.yaml"]
    return subprocess.run(
        [program("promtool"), *what], cwd=folder, capture_output=True, text=True, check=False
    )


def expecting(
    groups: list[dict[str, Any]], given: list[dict[str, str]], at: str, firing: set[str]
) -> dict[str, Any]:
    """A unit test in which exactly these alerts fire."""
    return {
        "interval": "1m",
        "input_series": given,
        "alert_rule_test": [
            {
                "eval_time": at,
                "alertname": rule["alert"],
                "exp_alerts": [
                    {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
                ]
                if rule["alert"] in firing
                else [],
            }
            for rule in groups[0]["rules"]
        ],
    }


def test_every_alert_is_tried(rules: list[dict[str, Any]]) -> None:
    assert {rule["alert"] for rule in rules[0]["rules"]} == set(SICK)


def test_every_alert_says_what_to_do(rules: list[dict[str, Any]]) -> None:
    for rule in rules[0]["rules"]:
        assert len(rule["annotations"]["runbook"]) > 60


def test_the_rules_are_valid(program: Program, tmp_path: Path, rules: list[dict[str, Any]]) -> None:
    checked = promtool(program, tmp_path, rules, [])
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_fires_alone_when_it_must(
    program: Program, tmp_path: Path, rules: list[dict[str, Any]]
) -> None:
    tests = [expecting(rules, given, at, {alert}) for alert, (given, at) in SICK.items()]
    checked = promtool(program, tmp_path, rules, tests)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_none_fires_where_all_is_well_or_nobody_asks(
    program: Program, tmp_path: Path, rules: list[dict[str, Any]]
) -> None:
    idle = instead(
        series("nv_inference_request_success", "9x60"),
        series("nv_inference_queue_duration_us", "99x60"),
        series("nv_inference_pending_request_count", "0x60"),
        failures("CANCELED", "7x60"),
    )
    tests = [expecting(rules, given, "45m", set()) for given in (WELL, idle)]
    checked = promtool(program, tmp_path, rules, tests)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_none_fires_of_what_is_over_in_a_moment(
    program: Program, tmp_path: Path, rules: list[dict[str, Any]]
) -> None:
    moment = instead(up("b", "1x10 0x2 1x40"), failures("BACKEND", "0x20 600 600x40"))
    checked = promtool(program, tmp_path, rules, [expecting(rules, moment, "21m", set())])
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_no_metrics_at_all_is_a_server_that_is_down(
    program: Program, tmp_path: Path, rules: list[dict[str, Any]]
) -> None:
    nothing = [series("other", "1x60")]
    checked = promtool(
        program, tmp_path, rules, [expecting(rules, nothing, "10m", {"BilateralDown"})]
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_rule_that_is_wrong_is_seen(
    program: Program, tmp_path: Path, rules: list[dict[str, Any]]
) -> None:
    broken = copy.deepcopy(rules)
    broken[0]["rules"][2]["expr"] += ")"
    assert promtool(program, tmp_path, broken, []).returncode != 0
    deaf = copy.deepcopy(rules)
    deaf[0]["rules"][2]["expr"] = deaf[0]["rules"][2]["expr"].replace("> 0.01", "> 0.5")
    given, at = SICK["BilateralFailing"]
    tests = [expecting(rules, given, at, {"BilateralFailing"})]
    assert promtool(program, tmp_path, rules, tests).returncode == 0
    assert promtool(program, tmp_path, deaf, tests).returncode != 0
