"""What TensorRT's builder is told, read back from its own configuration.

The options that only the full library has are asked of TensorRT for RTX under its name: it keeps
their flags, though it would not build with them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bilateral_export.engine.builder_config import configure
from bilateral_export.engine.installation.library import Library, load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.profiles import parse_profile

pytest.importorskip("tensorrt_rtx")
FLAGS = ("TF32", "REFIT", "REFIT_IDENTICAL", "STRIP_PLAN", "VERSION_COMPATIBLE")


@pytest.fixture
def library() -> Library:
    return load_library("tensorrt_rtx")


def configured(library: Library, options: BuildOptions, plugin: Path | None = None) -> Any:
    builder = library.trt.Builder(library.logger)
    return configure(builder, options, (86, 120), options.profiles, plugin, library)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (BuildOptions(), set()),
        (BuildOptions(tf32=True), {"TF32"}),
        (BuildOptions(refit=True), {"REFIT"}),
        (BuildOptions(strip_weights=True), {"REFIT_IDENTICAL", "STRIP_PLAN"}),
        (BuildOptions(strip_weights=True, refit=True), {"REFIT", "STRIP_PLAN"}),
        (BuildOptions(version_compatible=True), {"VERSION_COMPATIBLE"}),
    ],
)
def test_the_flags_are_those_asked_for(
    library: Library, options: BuildOptions, flags: set[str]
) -> None:
    config = configured(dataclasses.replace(library, name="tensorrt"), options)
    known = library.trt.BuilderFlag
    assert {flag for flag in FLAGS if config.get_flag(getattr(known, flag))} == flags


def test_limits_profiles_targets_and_plugin_arrive(library: Library) -> None:
    trt = library.trt
    options = BuildOptions(
        profiles=(parse_profile("x=1x8:1x8:2x8"), parse_profile("x=2x8:4x8:8x8")),
        embed_plugin=True,
        optimization_level=1,
        workspace_mib=64,
    )
    config = configured(library, options, Path("/somewhere/plugin.so"))
    assert config.num_optimization_profiles == 2
    assert config.plugins_to_serialize == ["/somewhere/plugin.so"]
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    targets = [config.get_compute_capability(i) for i in range(config.num_compute_capabilities)]
    assert targets == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]


def test_a_plugin_is_embedded_only_where_that_is_asked_for(library: Library) -> None:
    config = configured(library, BuildOptions(), Path("/somewhere/plugin.so"))
    assert config.plugins_to_serialize == []
