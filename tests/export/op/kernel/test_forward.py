"""The fused kernel agrees with the definition, as closely as plain attention does in the type."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tests.export.op.kernel.problems import DEVICE, Problem, problem, relative_error

from bilateral_export.errors import UserError
from bilateral_export.op.attention import attention

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="needs an NVIDIA GPU")


def allowed_error(dtype: torch.dtype) -> float:
    """Twice the error of PyTorch's own attention on a plain problem of this type.

    Triton's interpreter truncates float32 to bfloat16, where a GPU rounds: twice that error.
    """
    plain = problem(dtype=dtype, n_query=64, width=32)
    got = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.to(DEVICE) for tensor in (plain.query, plain.key, plain.value)), scale=plain.scale
    )
    truncated = dtype == torch.bfloat16 and DEVICE == "cpu"
    return 2 * relative_error(got.cpu(), plain.exact()) * (2 if truncated else 1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_plain_attention_is_as_exact_as_pytorchs(dtype: torch.dtype) -> None:
    plain = problem(dtype=dtype, n_query=64, width=32)

    assert relative_error(plain.fused(), plain.exact()) <= allowed_error(dtype)


KERNELS = [
    {"range_kernel": range_kernel, "spatial_kernel": spatial_kernel}
    for range_kernel, spatial_kernel in product(("dot", "gaussian"), ("none", "gaussian", "dot"))
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_query": 37, "n_key": 50, "query_prefix": 1, "key_prefix": 2},
    {"n_query": 50, "n_key": 70, "causal": True},
]


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: "-".join(kernels.values()))
@pytest.mark.parametrize("options", OPTIONS, ids=("square", "prefix", "causal"))
def test_kernels_and_options(kernels: dict[str, Any], options: dict[str, Any]) -> None:
    case = problem(**kernels, **options)

    assert relative_error(case.fused(), case.exact()) < 1e-6


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
def test_a_gaussian_spatial_term_costs_no_precision(dtype: torch.dtype, range_kernel: Any) -> None:
    case = problem(dtype=dtype, range_kernel=range_kernel, spatial_kernel="gaussian", width=32)

    assert relative_error(case.fused(), case.exact()) <= allowed_error(dtype)


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_features_are_rounded_to_the_tokens_type(dtype: torch.dtype) -> None:
    case = problem(dtype=dtype, spatial_kernel="dot", width=32)

    assert relative_error(case.fused(), case.exact()) <= 3 * allowed_error(dtype)


@pytest.mark.parametrize("width", [16, 24, 40, 72, 80, 128])
def test_head_dimensions(width: int) -> None:
    case = problem(width=width, heads=1, n_query=20, spatial_kernel="gaussian")

    assert relative_error(case.fused(), case.exact()) < 1e-6


def test_a_head_dimension_that_is_no_multiple_of_8_is_padded() -> None:
    case = problem(width=13, heads=1, n_query=20)

    assert relative_error(case.fused(), case.exact()) < 1e-6


@pytest.mark.parametrize(
    ("dtype", "width", "limit"),
    [(torch.float16, 256, 1e-3), (torch.float32, 256, 1e-6), (torch.float32, 160, 1e-6)],
    ids=str,
)
def test_head_dimensions_up_to_256(dtype: torch.dtype, width: int, limit: float) -> None:
    """Queries of float32 heads above 128 are read again for every tile: ragged ends matter."""
    case = problem(
        width=width, heads=1, n_query=37, n_key=41, dtype=dtype, spatial_kernel="gaussian",
        key_prefix=1, query_prefix=1,
    )  # fmt: skip

    assert relative_error(case.fused(), case.exact()) < limit


@pytest.mark.parametrize("features", [16, 20, 64, 128])
def test_numbers_of_position_features(features: int) -> None:
    case = problem(spatial_kernel="dot", features=features, heads=1, n_query=20)

    assert relative_error(case.fused(), case.exact()) < 1e-6


@pytest.mark.parametrize("coordinates", [1, 2, 3])
def test_numbers_of_coordinates(coordinates: int) -> None:
    case = problem(spatial_kernel="gaussian", coordinates=coordinates, n_query=20)

    assert relative_error(case.fused(), case.exact()) < 1e-6


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
@pytest.mark.parametrize("range_kernel", ["dot", "gaussian"])
def test_any_scale(scale: float, range_kernel: Any) -> None:
    case = problem(scale=scale, range_kernel=range_kernel, spatial_kernel="gaussian", n_query=20)

    assert relative_error(case.fused(), case.exact()) < 3e-6


def test_padding_by_key_bias() -> None:
    bias = torch.zeros(2, 50)
    bias[0, 30:] = -torch.inf  # whole tiles, and part of one
    bias[1, :7] = -1.5
    for range_kernel in ("dot", "gaussian"):
        case = problem(
            batch=2, n_query=20, n_key=50, range_kernel=range_kernel, spatial_kernel="gaussian"
        ).with_(key_bias=bias)

        assert relative_error(case.fused(), case.exact()) < 1e-6


def test_queries_that_see_no_key_give_zeros() -> None:
    case = problem(n_query=50, n_key=20, causal=True)

    output = case.fused()

    assert not output[:, :, :30].any()
    assert relative_error(output, case.exact()) < 1e-6


def test_a_fused_projection_is_read_where_it_lies() -> None:
    projection = torch.randn(2, 20, 3, 4, 16, generator=torch.Generator().manual_seed(0))
    query, key, value = projection.permute(2, 0, 3, 1, 4)
    assert not query.is_contiguous()
    case = Problem(query, key, value)

    from bilateral_export.op.kernel.launch import _aligned

    assert all(_aligned(tensor).data_ptr() == tensor.data_ptr() for tensor in (query, key, value))
    assert relative_error(case.fused(), case.exact()) < 1e-6


def test_rows_that_cannot_be_read_16_bytes_at_a_time_are_copied() -> None:
    wide = torch.randn(1, 2, 20, 17, generator=torch.Generator().manual_seed(0))
    case = Problem(*(wide[..., 1:] for _ in range(3)))

    assert relative_error(case.fused(), case.exact()) < 1e-6


def test_the_same_inputs_give_the_same_bits() -> None:
    case = problem(range_kernel="gaussian", spatial_kernel="gaussian")

    assert torch.equal(case.fused(), case.fused())


def test_the_committed_configuration_is_the_default() -> None:
    case = problem(n_query=150, heads=1, spatial_kernel="gaussian", key_prefix=1, query_prefix=1)

    assert relative_error(case.fused(configuration=None), case.exact()) < 1e-6


def test_it_agrees_with_the_composite() -> None:
    case = problem(batch=2, range_kernel="gaussian", spatial_kernel="gaussian", query_prefix=1)

    assert relative_error(case.fused(), attention(**vars(case)).double()) < 1e-6


def test_it_is_what_the_torch_operator_runs_on_a_gpu() -> None:
    """The operator's CUDA implementation, called by itself: the kernel, or else the composite."""
    from bilateral_export.op.torch_op import _fused

    case = problem(n_query=20, spatial_kernel="gaussian", range_kernel="gaussian", query_prefix=1)
    on_device = case.on_device()
    assert torch.equal(_fused(*on_device.arguments).cpu(), case.fused(configuration=None))
    double = on_device.map(torch.Tensor.double)
    torch.testing.assert_close(_fused(*double.arguments), attention(**vars(double)))


def test_a_gpu_older_than_every_kernel_gets_the_composite(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bilateral_export.op.kernel import launch
    from bilateral_export.op.torch_op import _fused

    monkeypatch.setattr(launch, "_capability", lambda device: 75)
    case = problem(n_query=20, spatial_kernel="gaussian").on_device()

    assert torch.equal(_fused(*case.arguments), attention(**vars(case)))
    with pytest.raises(UserError, match="compute capability"):
        launch.bilateral_attention_forward(case)


def test_what_it_cannot_take_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="float64"):
        problem(dtype=torch.float64).fused()
    with pytest.raises(UserError, match="head dimension 264 is above 256"):
        problem(width=264, dtype=torch.float16).fused()
    with pytest.raises(UserError, match="136 position features"):
        problem(spatial_kernel="dot", features=136).fused()


def test_empty_inputs() -> None:
    assert problem(n_query=0, n_key=5).fused().shape == (1, 2, 0, 16)
    assert not problem(n_query=5, n_key=0).fused().any()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: "-".join(kernels.values()))
def test_the_whole_grid_on_a_gpu(dtype: torch.dtype, kernels: dict[str, Any]) -> None:
    rounded_features = 3 if kernels["spatial_kernel"] == "dot" else 1
    allowed = rounded_features * allowed_error(dtype)
    widths, lengths = (16, 32, 48, 64, 72, 80, 96, 128, 192, 256), (1, 64, 197, 256)

    for width, n_query, causal in product(widths, lengths, (False, True)):
        case = problem(dtype=dtype, n_query=n_query, width=width, causal=causal, **kernels)
        error = relative_error(case.fused(configuration=None), case.exact())
        assert error <= allowed, f"width {width}, {n_query} tokens, causal {causal}: {error}"
