"""What a model of the repository implies for the machine that serves it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders import tiny_models
from tests.serving.deploy.models import facts, make_plan, objects, with_plugin

from bilateral_export.errors import UserError
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.deploy.facts import slug


def server(served: Path, name: str, **values: object) -> dict:  # type: ignore[type-arg]
    pod = objects(served, "kubernetes", name, **values)["Deployment"]["spec"]["template"]["spec"]
    return dict(pod["containers"][0])


class TestTheImage:
    def test_is_our_own_for_target_python_on_a_cpu(self, served: Path) -> None:
        found = server(served, "quadrants")
        assert found["image"].startswith("bilateral-serve:")
        assert found["command"][:3] == ["bilateral", "serve", "quadrants"]

    def test_is_nvidias_with_the_tensorrt_that_built_the_plan(self, served: Path) -> None:
        assert server(served, "engine")["image"] == "nvcr.io/nvidia/tritonserver:25.05-py3"

    def test_is_nvidias_newest_where_any_release_loads_the_file(self, served: Path) -> None:
        assert facts(served, "graph")[0].release.name == "26.08"

    def test_is_the_one_that_is_wanted(self, served: Path) -> None:
        assert facts(served, "graph", release="25.03")[0].release.name == "25.03"
        assert server(served, "graph", image="mine:1")["image"] == "mine:1"

    def test_that_cannot_load_the_model_is_refused(self, served: Path) -> None:
        with pytest.raises(UserError, match=r"10\.10\.0\.31, here is 11"):
            facts(served, "engine", release="26.07")

    def test_of_a_plan_that_no_release_loads_is_refused(self, tmp_path: Path) -> None:
        plan = make_plan(tmp_path / "m.plan", version="9.0.0")
        repository.add("old", plan, tmp_path / "r", target="tensorrt")
        with pytest.raises(UserError, match=r"needs TensorRT 9\.0\.0"):
            facts(tmp_path / "r", "old")

    def test_of_a_version_compatible_plan_may_be_newer(self, tmp_path: Path) -> None:
        plan = make_plan(tmp_path / "m.plan", version_compatible=True)
        repository.add("newer", plan, tmp_path / "r", target="tensorrt")
        assert facts(tmp_path / "r", "newer")[0].release.name == "26.07"
        command = server(tmp_path / "r", "newer")["command"]
        assert "--backend-config=tensorrt,version-compatible=true" in command

    def test_of_a_plan_with_a_plugin_is_built_and_told_of_it(self, tmp_path: Path) -> None:
        found = server(with_plugin(tmp_path), "engine")
        assert found["image"] == "bilateral-serve:25.05"
        where = "--backend-config=tensorrt,plugins=/opt/bilateral/lib/libbilateral_plugin.so"
        assert where in found["command"]

    def test_of_python_on_a_gpu_is_refused(self, tmp_path: Path) -> None:
        file = tiny_models.quadrants(tmp_path / "q.onnx")
        repository.add("gpu", file, tmp_path / "r", settings=Settings(device="gpu"))
        with pytest.raises(UserError, match="target python on a GPU"):
            facts(tmp_path / "r", "gpu")


class TestTheFlags:
    def test_are_those_that_the_version_knows(self, served: Path) -> None:
        histograms = "--metrics-config=histogram_latencies=true"
        assert histograms in server(served, "graph")["command"]
        assert histograms not in server(served, "graph", release="25.03")["command"]

    def test_close_management_with_a_token_from_a_secret(self, served: Path) -> None:
        found = server(served, "engine")
        closed = next(word for word in found["command"] if "grpc-restricted" in word)
        assert closed.endswith("bilateral-token=$(BILATERAL_ADMIN_TOKEN)")
        source = found["env"][0]["valueFrom"]["secretKeyRef"]
        assert source == {"name": "engine-admin", "key": "token"}


class TestTheMachine:
    def test_has_the_gpu_that_the_plan_was_built_for(self, served: Path) -> None:
        pod = objects(served, "kubernetes", "engine")["Deployment"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        wanted = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        labels = {
            it["key"].rpartition(".")[2]: (it["operator"], it["values"])
            for it in wanted["nodeSelectorTerms"][0]["matchExpressions"]
        }
        # Two instances of 100 MiB, and the plan.
        assert labels == {
            "major": ("In", ["9"]),
            "minor": ("In", ["0"]),
            "memory": ("Gt", ["201"]),
        }

    def test_may_be_newer_for_a_plan_of_ampere_and_up(self, tmp_path: Path) -> None:
        plan = make_plan(tmp_path / "m.plan", hardware_compatibility="ampere_plus")
        repository.add("any", plan, tmp_path / "r", target="tensorrt")
        pod = objects(tmp_path / "r", "kubernetes", "any")["Deployment"]["spec"]["template"]["spec"]
        wanted = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        majors = [t["matchExpressions"][0]["values"][0] for t in wanted["nodeSelectorTerms"]]
        assert majors == ["9", "10", "12"]

    def test_has_memory_for_the_files_and_every_instance(self, tmp_path: Path) -> None:
        file = tiny_models.quadrants(tmp_path / "q.onnx")
        for number in (1, 3):
            given = Settings(threads=1, instances=number)
            repository.add(f"of{number}", file, tmp_path / "r", settings=given)
        one, three = (facts(tmp_path / "r", f"of{number}")[0] for number in (1, 3))
        assert three.memory - one.memory >= 2 * (64 << 20)
        assert three.shm - one.shm == 2 * (64 << 20)
        assert (one.cores, three.cores) == (1, 3)

    def test_of_instances_that_take_all_cores_is_remarked_on(self, tmp_path: Path) -> None:
        file = tiny_models.quadrants(tmp_path / "q.onnx")
        repository.add("greedy", file, tmp_path / "r")
        assert "--threads" in facts(tmp_path / "r", "greedy")[0].remarks[0]
        assert not facts(tmp_path / "r", "greedy", cpu="2")[0].remarks


def test_values_that_an_image_does_not_know_are_remarked_on(served: Path) -> None:
    given = {"otlp": "http://collector:4318", "tokens_secret": "tokens"}
    assert not facts(served, "quadrants", **given)[0].remarks
    (theirs,) = facts(served, "graph", **given)[0].remarks
    assert "tokens_secret" in theirs


def test_a_changed_model_begins_a_rollout(tmp_path: Path) -> None:
    stamps = []
    for gain in (1.0, 2.0):
        file = tiny_models.quadrants(tmp_path / f"{gain}.onnx", gain=gain)
        repository.add("m", file, tmp_path / "r")
        template = objects(tmp_path / "r", "kubernetes", "m")["Deployment"]["spec"]["template"]
        stamps.append(template["metadata"]["annotations"])
    assert stamps[0] != stamps[1]


@pytest.mark.parametrize(
    ("name", "made"),
    [("digits", "digits"), ("DeiT_T.v2", "deit-t-v2"), ("7b", "model-7b"), ("_", "model")],
)
def test_names_become_those_of_kubernetes(name: str, made: str) -> None:
    assert slug(name) == made
