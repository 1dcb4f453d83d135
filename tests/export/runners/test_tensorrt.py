"""What of the TensorRT runner needs no GPU. The rest: bilateral_benchmarks.gpu_checks.runner."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders.plans import plugin_record, write_plan

from bilateral_benchmarks.gpu_checks import runner
from bilateral_export.engine.installation.cuda import Device, Driver, read_driver
from bilateral_export.engine.plan.manifest import PlanManifest, manifest_path, read_manifest
from bilateral_export.engine.profiles import Range
from bilateral_export.errors import UserError
from bilateral_export.files import require_file
from bilateral_export.runners.tensorrt_runner import (
    TensorRTRunner,
    check_loadable,
    choose_profile,
)

VERSION = "10.14.1.48"
H100 = Driver((13, 0), (Device("H100", 90, 80 << 30, 79 << 30),))


def batch_profile(low: int, middle: int, high: int) -> dict[str, Range]:
    return {"x": Range((low, 8), (middle, 8), (high, 8))}


class TestProfile:
    @given(st.integers(1, 64))
    def test_the_chosen_profile_accepts_the_shape(self, batch: int) -> None:
        profiles = [batch_profile(1, 1, 4), batch_profile(1, 16, 64), batch_profile(2, 8, 16)]
        chosen = choose_profile(profiles, {"x": (batch, 8)})
        assert profiles[chosen]["x"].contains((batch, 8))

    @pytest.mark.parametrize(("batch", "expected"), [(1, 0), (3, 0), (4, 0), (6, 2), (16, 1)])
    def test_of_several_the_one_tuned_for_the_nearest_size_is_taken(
        self, batch: int, expected: int
    ) -> None:
        profiles = [batch_profile(1, 2, 4), batch_profile(1, 16, 64), batch_profile(2, 8, 16)]
        assert choose_profile(profiles, {"x": (batch, 8)}) == expected

    def test_a_shape_outside_every_profile_is_refused_with_the_ranges(self) -> None:
        with pytest.raises(UserError, match=r"x=65x8 is outside.*1x8:16x8:64x8"):
            choose_profile([batch_profile(1, 16, 64)], {"x": (65, 8)})

    def test_a_plan_without_dynamic_shapes_has_one_way_to_run(self) -> None:
        assert choose_profile([], {"x": (1, 8)}) == 0

    def test_an_empty_cache_does_not_upset_the_choice(self) -> None:
        cached = {"x": Range((1, 0), (1, 4), (1, 8))}
        assert choose_profile([cached, cached], {"x": (1, 0)}) == 0


class TestLoading:
    @pytest.fixture
    def manifest(self, tmp_path: Path) -> PlanManifest:
        return read_manifest(write_plan(tmp_path / "model.plan"))

    def test_a_fitting_machine_is_accepted(self, manifest: PlanManifest) -> None:
        check_loadable(manifest, VERSION, H100, None)

    @pytest.mark.parametrize("driver", [None, Driver((13, 0), ())])
    def test_no_gpu_is_said_in_one_line(
        self, manifest: PlanManifest, driver: Driver | None
    ) -> None:
        with pytest.raises(UserError, match="NVIDIA GPU only") as caught:
            check_loadable(manifest, VERSION, driver, None)
        assert "\n" not in str(caught.value)

    def test_another_version_or_gpu_is_refused(self, manifest: PlanManifest) -> None:
        with pytest.raises(UserError, match=r"here is 10\.15\.0"):
            check_loadable(manifest, "10.15.0", H100, None)
        ada = Driver((13, 0), (Device("L4", 89, 24 << 30, 23 << 30),))
        with pytest.raises(UserError, match="the GPU is sm_89"):
            check_loadable(manifest, VERSION, ada, None)

    def test_a_plan_without_weights_is_refused(self, manifest: PlanManifest) -> None:
        stripped = manifest.model_copy(update={"options": {"strip_weights": True}})
        with pytest.raises(UserError, match="without its weights"):
            check_loadable(stripped, VERSION, H100, None)

    def test_a_missing_plugin_is_refused(self, tmp_path: Path) -> None:
        library = tmp_path / "libplugin.so"
        library.write_bytes(b"library")
        plan = write_plan(tmp_path / "model.plan", plugin=plugin_record(library))
        with pytest.raises(UserError, match="is not there"):
            check_loadable(read_manifest(plan), VERSION, H100, None)
        library.write_bytes(b"another")
        with pytest.raises(UserError, match="another plugin"):
            check_loadable(read_manifest(plan), VERSION, H100, library)


class TestRunner:
    def test_the_interface_is_the_manifests(self, tmp_path: Path) -> None:
        runner = TensorRTRunner(write_plan(tmp_path / "model.plan"))
        assert runner.name == "tensorrt fp16"
        assert [str(spec) for spec in runner.inputs] == ["image float32[batch, 3, 8, 8]"]
        assert [str(spec) for spec in runner.outputs] == ["logits float32[batch, 10]"]

    def test_the_plan_is_checked_against_its_manifest_when_it_is_opened(
        self, tmp_path: Path
    ) -> None:
        plan = write_plan(tmp_path / "model.plan")
        plan.write_bytes(b"other" * 100)
        with pytest.raises(UserError, match="500 bytes"):
            TensorRTRunner(plan)
        manifest_path(plan).unlink()
        with pytest.raises(UserError, match="manifest"):
            TensorRTRunner(plan)

    @pytest.mark.skipif(read_driver() is not None, reason="there is a GPU here")
    def test_without_a_driver_it_says_so_in_one_line(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorrt_rtx")
        plan = write_plan(tmp_path / "model.plan")
        path = manifest_path(plan)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"library": "tensorrt_rtx"}))
        with pytest.raises(UserError, match="none is visible here"), TensorRTRunner(plan):
            pass


class TestGpuCheck:
    def test_it_covers_every_precision_path_and_graph_setting(self) -> None:
        assert len(list(runner.cases(plugin=True))) == 3 * 3 * 2
        assert {case.attention for case in runner.cases(plugin=False)} == {"function"}

    def test_its_batches_lie_on_both_sides_of_the_profile_boundary(self) -> None:
        profiles = runner.two_profiles({"x": (-1, 8)})
        chosen = {choose_profile(profiles, {"x": (batch, 8)}) for batch in runner.BATCHES}
        assert chosen == {0, 1}

    def test_plans_are_built_and_judged_in_processes_of_their_own(self, tmp_path: Path) -> None:
        assert runner.in_new_process(os.getpid) != os.getpid()
        with pytest.raises(UserError, match=r"none\.plan"):
            runner.in_new_process(require_file, tmp_path / "none.plan", "plan")

    @pytest.mark.skipif(read_driver() is not None, reason="there is a GPU here")
    def test_without_a_gpu_it_says_so(self) -> None:
        with pytest.raises(UserError, match="no NVIDIA GPU is visible"):
            runner.check_runner(Path("checkpoint.safetensors"), print)
