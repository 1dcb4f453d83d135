"""`bilateral deploy`: the walk-through of its README, as far as one machine goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.cli.conftest import Bilateral

from bilateral_serving import repository as repositories
from bilateral_serving.config import Settings


@pytest.fixture(scope="module")
def repository(digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    served = tmp_path_factory.mktemp("deployed") / "models"
    repositories.add("digits", digits_onnx, served, settings=Settings(threads=1))
    return served


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("kubernetes", {"kubernetes.yaml"}),
        ("kserve", {"kserve.yaml"}),
        ("docker", {"Dockerfile", ".dockerignore"}),
        (
            "compose",
            {
                "compose.yaml",
                "nginx.conf",
                "prometheus.yaml",
                "alerts.yaml",
                "dashboard.json",
                "Dockerfile",
                ".dockerignore",
            },
        ),
    ],
)
def test_writes_its_files_and_the_values(
    bilateral: Bilateral, repository: Path, tmp_path: Path, kind: str, files: set[str]
) -> None:
    out = tmp_path / "deploy"
    done = bilateral("deploy", kind, "digits", "--repository", repository, "--out", out)
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == {*files, "values.yaml"}
    assert {Path(line).name for line in done.out.split()} == {*files, "values.yaml"}


def test_values_are_kept_and_asked_again(
    bilateral: Bilateral, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deploy"
    command = ("deploy", "kubernetes", "digits", "--repository", repository, "--out", out)
    bilateral(*command)
    values = out / "values.yaml"
    values.write_text(values.read_text().replace("namespace: default", "namespace: shop  # ours"))
    assert bilateral(*command).code == 0
    assert "# ours" in values.read_text()
    written = (out / "kubernetes.yaml").read_text()
    assert "namespace: shop" in written
    assert "#" not in written.replace("# ours", "").partition("grafana")[0]
    first = written
    bilateral(*command)
    assert (out / "kubernetes.yaml").read_text() == first


def test_diff_says_what_is_deployed_otherwise(
    bilateral: Bilateral, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deploy"
    where = ("--repository", repository, "--out", out)
    bilateral("deploy", "kubernetes", "digits", *where)
    deployed = out / "kubernetes.yaml"
    assert bilateral("deploy", "diff", "kubernetes", "digits", deployed, *where).code == 0
    documents = list(yaml.safe_load_all(deployed.read_text()))
    documents[0]["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    deployed.write_text(yaml.safe_dump_all(documents))
    differs = bilateral("deploy", "diff", "kubernetes", "digits", deployed, *where)
    assert differs.code == 1
    assert "image is 'other:1'" in differs.out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("namespce: shop", "namespce: Extra inputs"),
        ("queue_ms: soon", "queue_ms: Input should be a valid integer"),
        ("storage: nfs://x", "storage: String should match"),
        ("a: [", "is not YAML"),
    ],
)
def test_values_that_are_wrong_write_nothing(
    bilateral: Bilateral, repository: Path, tmp_path: Path, text: str, problem: str
) -> None:
    values, out = tmp_path / "mine.yaml", tmp_path / "deploy"
    values.write_text(text)
    done = bilateral(
        "deploy", "kserve", "digits", "--repository", repository, "--out", out, "--values", values
    )
    assert done.code == 2
    assert problem in done.err
    assert not out.exists()


def test_a_model_that_is_not_there_is_refused(
    bilateral: Bilateral, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deploy"
    done = bilateral("deploy", "kserve", "other", "--repository", repository, "--out", out)
    assert (done.code, out.exists()) == (2, False)
    assert "no model 'other'" in done.err
    assert bilateral("deploy", "diff", "helm", "digits", out).code == 2
