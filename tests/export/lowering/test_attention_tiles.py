"""Attention in tiles: what is left out cannot be seen, whatever the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from bilateral_benchmarks.experiments.attention_model import write_attention
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.lowering import attention_forms, attention_tiles, grid_tiling
from bilateral_export.lowering.attention_flash import rewrite_to_flash
from bilateral_export.lowering.attention_pattern import (
    AttentionPattern,
    Graph,
    PreconditionError,
    attention_nodes,
    read_attention,
)
from bilateral_export.lowering.attention_tiles import rewrite_to_tiles
from bilateral_export.lowering.definition import attend_queries
from bilateral_export.lowering.gate import FACTOR, opened
from bilateral_export.lowering.graph_edit import drop_unused
from bilateral_export.lowering.grid_tiling import Grid, log_tail
from bilateral_export.lowering.lower import lowered_proto
from bilateral_export.op.contract import RangeKernel
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

Array = NDArray[Any]
HEAD_DIM = 8


@pytest.fixture(autouse=True)
def _tiles_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of a test are too short for tiles to gain time."""
    monkeypatch.setattr(grid_tiling, "_TURN_COST", 0)
    monkeypatch.setattr(grid_tiling, "_KEY_COST", 0)


def grid_attention(
    folder: Path,
    sides: tuple[int, int],
    bandwidth: list[float],
    *,
    prefix: int = 1,
    range_kernel: RangeKernel = "dot",
    gain: float = 1.0,
) -> Path:
    """Write one attention on a grid; a row of points has one coordinate."""
    tokens = prefix + sides[0] * sides[1]
    path = folder / "attention.onnx"
    write_attention(
        path, tokens, heads=len(bandwidth), head_dim=HEAD_DIM, range_kernel=range_kernel
    )
    model = onnx.load(path)
    placed = np.stack(np.indices(sides), -1).reshape(-1, 2)[:, sides[0] == 1 :]
    positions = np.concatenate([np.full((prefix, placed.shape[1]), 1e3), placed])
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name == "positions":
            value = positions
        elif tensor.name == "bandwidth":
            value = np.array(bandwidth)
        elif tensor.name.endswith("qkv.weight"):
            value = value * np.float32(gain)
        tensor.CopyFrom(
            numpy_helper.from_array(
                value if value.dtype == np.int64 else value.astype(np.float32), tensor.name
            )
        )
    (node,) = attention_nodes(model)
    for attribute in node.attribute:
        if attribute.name in ("query_prefix", "key_prefix"):
            attribute.i = prefix
    onnx.save(model, path)
    return path


def rewritten(path: Path) -> tuple[onnx.ModelProto, AttentionPattern]:
    model = onnx.load(path)
    (node,) = attention_nodes(model)
    pattern = read_attention(model, Graph(model), node)
    rewrite_to_tiles(model, pattern)
    drop_unused(model)
    return model, pattern


def run(model: onnx.ModelProto, pattern: AttentionPattern, tokens: Array) -> tuple[Array, bool]:
    """The attention's output, and whether every group of heads was computed in tiles."""
    flags = [node.input[0] for node in model.graph.node if node.op_type == "If"]
    names = [pattern.merged, *flags]
    with opened(model, outputs=names) as session:
        merged, *few = session.run(names, {"tokens": tokens})
    return merged, all(bool(flag) for flag in few)


def check(path: Path, model: onnx.ModelProto, pattern: AttentionPattern, tokens: Array) -> bool:
    """Compare every token with the definition; return whether all groups were in tiles.

    The budget is the gate's, or what the flash form, whose features these are, needs.
    """
    got, few = run(model, pattern, tokens)
    dense = onnx.load(path)
    rewrite_to_flash(dense, read_attention(dense, Graph(dense), attention_nodes(dense)[0]))
    flash, _ = run(dense, pattern, tokens)
    every = np.arange(tokens.shape[1])
    exact, plain = (
        attend_queries(pattern, tokens, every, dtype) for dtype in (np.float64, np.float32)
    )
    allowed = FACTOR * max(distance(plain, exact), distance(flash, exact), 2.0**-23)
    assert distance(got, exact) <= allowed
    assert distance(got, flash) <= allowed
    return few


def distance(got: Array, exact: Array) -> float:
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def normal(pattern: AttentionPattern, batch: int, seed: int) -> Array:
    shape = (batch, pattern.length or 0, pattern.weight.shape[0])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(
    sides=st.tuples(st.sampled_from([1, 17, 25]), st.integers(24, 40)),
    bandwidth=st.lists(st.floats(0.3, 0.8), min_size=1, max_size=3),
    prefix=st.integers(0, 2),
    range_kernel=st.sampled_from(["dot", "gaussian"]),
    batch=st.integers(1, 2),
    outlier=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_tiles_are_the_definition_on_any_grid_for_any_input(
    sides: tuple[int, int],
    bandwidth: list[float],
    prefix: int,
    range_kernel: RangeKernel,
    batch: int,
    outlier: float,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if sides[0] == 1:
        sides = (1, 20 * sides[1])
    path = grid_attention(
        tmp_path_factory.mktemp("grid"), sides, bandwidth, prefix=prefix, range_kernel=range_kernel
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_tiling, "_WORTH", 10.0)
        model, pattern = rewritten(path)
    tokens = normal(pattern, batch, seed)
    tokens[0, seed % tokens.shape[1]] *= outlier
    check(path, model, pattern, tokens)


@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
def test_a_range_kernel_too_strong_for_the_bound_takes_the_dense_branch(
    range_kernel: RangeKernel, tmp_path: Path
) -> None:
    for gain, in_tiles in ((1.0, True), (30.0, False)):
        path = grid_attention(tmp_path, (24, 24), [0.7, 0.8], range_kernel=range_kernel, gain=gain)
        model, pattern = rewritten(path)
        tokens = normal(pattern, 1, 0)
        assert check(path, model, pattern, tokens) is in_tiles


def test_one_far_key_that_matters_is_not_left_out(tmp_path: Path) -> None:
    path = grid_attention(tmp_path, (24, 24), [0.7])
    model, pattern = rewritten(path)
    tokens = normal(pattern, 1, 0)
    # The last key's product with the first query outweighs their distance.
    query, key, _ = np.split(pattern.weight, 3, axis=1)
    towards = np.linalg.pinv(key.T) @ (query.T @ tokens[0, 1])
    tokens[0, -1] = 1e4 * towards / np.linalg.norm(towards)
    exact = attend_queries(pattern, tokens, np.array([1]), np.float64)
    assert np.abs(exact).max() > 100  # the first query sees the last value
    check(path, model, pattern, tokens)


@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_goes_everywhere_as_in_the_dense_form(
    value: float, range_kernel: RangeKernel, tmp_path: Path
) -> None:
    model, pattern = rewritten(grid_attention(tmp_path, (24, 24), [0.7], range_kernel=range_kernel))
    tokens = normal(pattern, 2, 0)
    assert run(model, pattern, tokens)[1]
    tokens[1, -1, 0] = value
    got, few = run(model, pattern, tokens)
    assert not few
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[0]).all()


def test_a_radius_that_is_too_small_fails_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grid_attention(tmp_path, (24, 24), [1.0, 1.1])
    assert lowered_proto(path, "onnxruntime-cpu", form="tiles")[1].summary == "1 x tiles"
    room = attention_tiles._room
    monkeypatch.setattr(attention_tiles, "_room", lambda *given: room(*given) + 20)
    _, done = lowered_proto(path, "onnxruntime-cpu", form="tiles")
    assert done.summary == "1 x decomposed"
    assert "tiles: error" in done.sites[0].refused[0]


def test_wide_heads_are_dense_and_heads_keep_their_order(tmp_path: Path) -> None:
    path = grid_attention(tmp_path, (24, 24), [9.0, 0.5, 9.0, 0.6, 1.2])
    model, pattern = rewritten(path)
    groups = grid_tiling.head_groups(pattern)
    assert [group.heads for group in groups if group.tiling is None] == [(0, 2)]
    tokens = normal(pattern, 2, 0)
    assert check(path, model, pattern, tokens)


def test_with_wide_bandwidths_nothing_changes(tmp_path: Path) -> None:
    path = grid_attention(tmp_path, (24, 24), [6.0, 9.0])
    proto, done = lowered_proto(path, "onnxruntime-cpu")
    assert done.sites[0].form == "augmented"
    assert done.sites[0].refused == ()
    assert not {"If", "Loop"} & {node.op_type for node in proto.graph.node}
    _, forced = lowered_proto(path, "onnxruntime-cpu", form="tiles")
    assert "every bandwidth is too wide" in forced.sites[0].refused[0]


@pytest.mark.parametrize("fault", ["scattered", "shuffled"])
def test_positions_that_are_not_a_grid_are_refused(fault: str, tmp_path: Path) -> None:
    path = grid_attention(tmp_path, (24, 24), [0.5])
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "positions")
    value = numpy_helper.to_array(tensor).copy()
    generator = np.random.default_rng(0)
    if fault == "scattered":
        value[1:] += 0.1 * generator.standard_normal(value[1:].shape).astype(np.float32)
    else:
        value[1:] = generator.permutation(value[1:])
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    pattern = read_attention(model, Graph(model), attention_nodes(model)[0])
    with pytest.raises(PreconditionError, match="not a grid"):
        rewrite_to_tiles(model, pattern)
    assert not grid_tiling.worth_tiling(pattern)


@settings(max_examples=30, deadline=None)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(2, 9)),
    gaps=st.tuples(st.floats(0.2, 2.0), st.floats(0.2, 2.0)),
    sigma=st.floats(0.1, 20.0),
)
def test_the_tail_bounds_what_is_beyond_a_radius(
    sides: tuple[int, int], gaps: tuple[float, float], sigma: float
) -> None:
    places = np.stack(np.indices(sides), -1).reshape(-1, 2)
    offsets = np.abs(places[:, None] - places[None])
    weights = np.exp(-0.5 * np.square(offsets * np.array(gaps) / sigma).sum(-1))
    tail = np.exp(log_tail(Grid(0, sides, gaps), sigma))
    for radius, bound in enumerate(tail):
        beyond = (weights * (offsets > radius).any(-1)).sum(-1)
        assert (beyond <= bound * (1 + 1e-9)).all()
    assert tail[-1] == 0


def test_a_whole_model_in_tiles_passes_parity_and_its_last_attention_is_not_tiled(
    digits: Checkpoint, digits_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_tiling, "_SIDES", (2,))
    monkeypatch.setattr(grid_tiling, "_WORTH", 2.0)
    proto, done = lowered_proto(digits_onnx, "onnxruntime-cpu")
    assert [site.form for site in done.sites][:3] == ["tiles"] * 3
    assert done.sites[3].form != "tiles"
    assert done.sites[3].refused[0] == "tiles: only some tokens of its output are read"
    assert done.record("residual_stream").applied
    assert done.record("push_down_gather").applied
    onnx.checker.check_model(proto, full_check=True)
    path = tmp_path / "lowered.onnx"
    onnx.save(proto, path)
    samples = random_samples(digits.build_model())
    report = compare(digits, [Candidate(OnnxRuntimeRunner(path), "fp32")], samples)
    assert report.passed, report.rows


def test_tiles_are_tried_first_only_where_they_are_expected_to_pay(tmp_path: Path) -> None:
    pattern = rewritten(grid_attention(tmp_path, (24, 24), [0.5]))[1]
    assert attention_forms.preferred_forms("onnxruntime-cpu", pattern)[0] == "tiles"
    assert attention_forms.preferred_forms("openvino", pattern) == ("decomposed",)
