"""Dockerfiles by hadolint, Compose by docker-compose, nginx.conf by nginx."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.serving.deploy.models import NAMES, facts, rendered, with_plugin

from bilateral_serving.deploy.render import render

Program = Callable[[str], str]


def run(*command: str, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, input=given, capture_output=True, text=True, check=False
    )


class TestDockerfile:
    @pytest.mark.parametrize("name", NAMES)
    def test_has_no_finding(self, served: Path, program: Program, name: str) -> None:
        text = rendered(served, "docker", name)["Dockerfile"]
        linted = run(program("hadolint"), "-", cwd=served, given=text)
        assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout

    def test_that_is_careless_has_one(self, served: Path, program: Program) -> None:
        text = rendered(served, "docker")["Dockerfile"].replace("USER 1000", "USER root")
        assert "DL3002" in run(program("hadolint"), "-", cwd=served, given=text).stdout

    def test_copies_the_plugin_that_a_plan_needs(self, tmp_path: Path, program: Program) -> None:
        files = rendered(with_plugin(tmp_path), "docker", "engine")
        line = "COPY libbilateral_plugin.so /opt/bilateral/lib/libbilateral_plugin.so"
        assert line in files["Dockerfile"]
        assert "!libbilateral_plugin.so" in files[".dockerignore"]
        linted = run(program("hadolint"), "-", cwd=tmp_path, given=files["Dockerfile"])
        assert linted.stdout == ""

    def test_of_nvidias_server_wants_the_token_when_it_runs(self, served: Path) -> None:
        text = rendered(served, "docker", "engine")["Dockerfile"]
        assert r"${BILATERAL_ADMIN_TOKEN:?is not set}" in text
        assert "$(" not in text.partition("CMD")[2]


class TestCompose:
    @pytest.mark.parametrize("name", NAMES)
    def test_is_what_its_schema_says(
        self, served: Path, program: Program, tmp_path: Path, name: str
    ) -> None:
        checked = config(program, tmp_path, rendered(served, "compose", name)["compose.yaml"])
        assert checked.returncode == 0, checked.stderr

    def test_with_a_fault_is_refused(self, served: Path, program: Program, tmp_path: Path) -> None:
        document = yaml.safe_load(rendered(served, "compose")["compose.yaml"])
        document["services"]["quadrants-1"]["read_onli"] = True
        checked = config(program, tmp_path, yaml.safe_dump(document))
        assert checked.returncode != 0
        assert "read_onli" in checked.stderr

    def test_needs_the_token_that_manages_nvidias_server(
        self, served: Path, program: Program, tmp_path: Path
    ) -> None:
        text = rendered(served, "compose", "engine")["compose.yaml"]
        checked = config(program, tmp_path, text, token="")
        assert checked.returncode != 0
        assert "BILATERAL_ADMIN_TOKEN" in checked.stderr

    def test_names_the_same_servers_everywhere(self, served: Path) -> None:
        found, values = facts(served, min_replicas=3)
        files = render("compose", found, values, served, served.parent / "out")
        document = yaml.safe_load(files["compose.yaml"])
        servers = [name for name in document["services"] if name.startswith("quadrants")]
        assert len(servers) == 3
        targets = yaml.safe_load(files["prometheus.yaml"])["scrape_configs"][0]["static_configs"]
        assert targets == [{"targets": [f"{name}:8002" for name in servers]}]
        for name in servers:
            assert f"server {name}:9000 " in files["nginx.conf"]
        mounted = document["services"][servers[0]]["volumes"][0]
        assert mounted == "../repository:/models:ro"


def config(
    program: Program, folder: Path, text: str, token: str = "secret"
) -> subprocess.CompletedProcess[str]:
    """`docker-compose config`, which asks no daemon."""
    (folder / "compose.yaml").write_text(text)
    found = program("docker-compose")
    return subprocess.run(
        [found, "-f", "compose.yaml", "config", "-q"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "BILATERAL_ADMIN_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nginx_reads_its_configuration(served: Path, program: Program, tmp_path: Path) -> None:
    from bilateral_serving.deploy.nginx import nginx_configuration

    text = nginx_configuration("127.0.0.1:9000", ["127.0.0.1:9001"], scratch=str(tmp_path))
    for conf, code in ((text, 0), (text.replace("grpc_pass", "grpc_pas"), 1)):
        (tmp_path / "nginx.conf").write_text(conf)
        checked = run(program("nginx"), "-t", "-c", str(tmp_path / "nginx.conf"), cwd=tmp_path)
        assert checked.returncode == code, checked.stderr
