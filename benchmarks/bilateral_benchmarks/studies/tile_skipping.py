"""Tile skipping on trained weights: the share of key tiles read, against two oracles.

Needs no GPU (`TRITON_INTERPRET=1`). Trained checkpoints run on inputs longer than those they were
trained on. For queries and keys of every head, three shares of key tiles read are compared:

- by the kernel's tile ranges (op/kernel/tile_ranges.py), whose bound holds for any input;
- by an oracle that leaves out tiles from either end, as the plan does, but by the true weights;
- by an oracle that may leave out any tiles.

All three may leave out the same share of a row's weights. Counts, no times: the same on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bilateral_benchmarks.report.context import command
from bilateral_benchmarks.report.files import write
from bilateral_benchmarks.report.result import Result
from bilateral_benchmarks.report.tables import Table
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.errors import UserError
from bilateral_export.models.language import LanguageModel
from bilateral_export.op.attention import spatial_logits
from bilateral_export.op.kernel import launch_config
from bilateral_export.op.operands import Operands
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.tasks import listops
from bilateral_export.text import Tokenizer

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
# Trained bandwidths are multiplied by these, for the curve below what was trained.
FACTORS = (1.0, 0.25, 0.0625)
DIGITS_SIZE = 96


@dataclass(frozen=True)
class Row:
    """One head.

    Attributes:
        model: Whose weights, on what.
        layer: Which attention.
        head: Which head.
        tokens: N.
        factor: What its trained bandwidth was multiplied by.
        sigma: The bandwidth, as a share of the extent of the positions.
        plan: Share of the visible key tiles that the plan reads.
        ends: The same of the oracle that leaves out from either end.
        any: The same of the oracle that leaves out any.
        left_out: The largest share of a row's weights that the plan leaves out.
        error: What that changes in an output, at most, over the largest value.
    """

    model: str
    layer: int
    head: int
    tokens: int
    factor: float
    sigma: float
    plan: float
    ends: float
    any: float
    left_out: float
    error: float


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the operands of every attention of a model."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Operands] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.bilateral.attention.default:
            self.seen.append(Operands(*args))
        return func(*args, **(kwargs or {}))


def recorded(model: nn.Module, *inputs: Tensor) -> list[Operands]:
    """Return what every attention of a model is given for some inputs."""
    with torch.inference_mode(), _Recorder() as recorder:
        model.eval()(*inputs)
    seen: list[Operands] = recorder.seen
    return seen


def digits() -> list[Operands]:
    """Return the attentions of the digits classifier at 96 pixels: 2304 patches, a class token."""
    checkpoint = at_resolution(load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors"),
                               DIGITS_SIZE)  # fmt: skip
    with np.load(CHECKPOINTS / "digits_heldout.npz") as file:
        image = torch.from_numpy(file["images"][:1]).float()[:, None]
    image = nn.functional.interpolate(image, (DIGITS_SIZE, DIGITS_SIZE), mode="bilinear")
    return recorded(checkpoint.build_model(), image / image.max())


def language() -> list[Operands]:
    """Return the attentions of the language model on all of its held-out text at once."""
    checkpoint = load_checkpoint(CHECKPOINTS / "pydoc_bilateral.safetensors")
    model = checkpoint.build_model()
    assert isinstance(model, LanguageModel)
    text = (CHECKPOINTS / "pydoc_heldout.txt").read_text(encoding="utf-8")
    said = checkpoint.card.preprocessing
    assert isinstance(said, TextPreprocessing)
    tokens = torch.tensor([Tokenizer(said.vocabulary, said.split).encode(text)])
    config = model.config.model_copy(update={"context": tokens.shape[1]})
    longer = LanguageModel(config)
    longer.load_state_dict(model.state_dict())
    _, depth, heads, _, width = config.cache_shape
    past = torch.zeros(1, int(depth), int(heads), 0, int(width))
    return recorded(longer, tokens, tokens, past, past)


def sequence() -> list[Operands]:
    """Return the attentions of the ListOps classifier on an expression of its full length."""
    checkpoint = load_checkpoint(CHECKPOINTS / "listops_bilateral.safetensors")
    config = listops.ListOpsConfig(max_depth=10, max_args=10, min_length=119, max_length=129)
    symbols, _ = listops.generate(config, np.random.default_rng(0))
    tokens = torch.from_numpy(listops.encode(symbols))[None]
    return recorded(checkpoint.build_model(), tokens)


def head_of(operands: Operands, head: int, factor: float) -> Operands:
    """Return one head in float16, its bandwidth multiplied."""
    assert operands.bandwidth is not None

    def one(tokens: Tensor) -> Tensor:
        return tokens[:1, head : head + 1].half().contiguous()

    return replace(
        operands, query=one(operands.query), key=one(operands.key), value=one(operands.value),
        bandwidth=operands.bandwidth[head : head + 1] * factor,
    )  # fmt: skip


def measure(operands: Operands, capability: int) -> dict[str, float]:
    """Return the shares of tiles read and what the plan leaves out, for one head."""
    from bilateral_export.op.kernel.launch import SKIP_TOLERANCE, prepare

    chosen = launch_config.choose(capability, 16, "gaussian", operands.query.shape[-1])
    launch = prepare(operands, True, chosen)
    low, high = launch.tile_ranges(*launch.key_terms())[0, 0].unbind(-1)
    budget = SKIP_TOLERANCE[operands.query.dtype]
    weights = true_weights(operands)
    mass = tile_mass(weights, chosen.block_m, chosen.block_n)
    first, whole, stop = seen_tiles(operands, chosen.block_m, chosen.block_n, len(mass))
    visible, read, ends, free = 0, 0, 0, 0
    dropped = torch.zeros_like(weights, dtype=torch.bool)
    for tile, shares in enumerate(mass):
        inner = shares[:, first[tile] : whole[tile]]  # rows, tiles that may be left out
        edges = stop[tile] - inner.shape[1]
        visible += stop[tile]
        read += edges + max(0, int(high[tile]) - int(low[tile]))
        left = sum(_droppable(side, budget / 2) for side in (inner, inner.flip(1)))
        ends += edges + max(0, inner.shape[1] - left)
        order = inner.amax(0).argsort()
        free += edges + inner.shape[1] - _droppable(inner[:, order], budget)
        rows = slice(tile * chosen.block_m, (tile + 1) * chosen.block_m)
        for gone in (
            slice(first[tile] * chosen.block_n, int(low[tile]) * chosen.block_n),
            slice(int(high[tile]) * chosen.block_n, whole[tile] * chosen.block_n),
        ):
            dropped[rows, gone] = True
    value = operands.value[0, 0].double()
    kept = weights.masked_fill(dropped, 0.0)
    error = (kept / kept.sum(1, keepdim=True) - weights) @ value
    return {
        "plan": read / visible,
        "ends": ends / visible,
        "any": free / visible,
        "left_out": float(weights.masked_fill(~dropped, 0.0).sum(1).max()),
        "error": float(error.abs().max() / value.abs().max()),
    }


def _droppable(shares: Tensor, budget: float) -> int:
    """Return how many tiles, from the first on, no row misses more than `budget` of."""
    return int((shares.cumsum(1).amax(0) <= budget).sum()) if shares.numel() else 0


def true_weights(operands: Operands) -> Tensor:
    """Return the attention weights of one head, `[N, N]` float64."""
    query, key = operands.query[0, 0].double(), operands.key[0, 0].double()
    assert operands.query_positions is not None
    assert operands.key_positions is not None
    assert operands.bandwidth is not None
    logits = operands.scale * (query @ key.T)
    if operands.range_kernel == "gaussian":
        logits -= 0.5 * operands.scale * key.square().sum(-1)
    places = spatial_logits(
        operands.query_positions.double(), operands.key_positions.double(),
        operands.bandwidth.double(), "gaussian",
    )[0]  # fmt: skip
    places[: operands.query_prefix] = 0
    places[:, : operands.key_prefix] = 0
    logits += places
    if operands.key_bias is not None:
        logits += operands.key_bias.double()
    if operands.causal:
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
    return logits.softmax(-1)


def tile_mass(weights: Tensor, block_m: int, block_n: int) -> list[Tensor]:
    """Return for every tile of queries the weight of every tile of keys, `[rows, tiles]`."""
    padded = nn.functional.pad(weights, (0, -weights.shape[1] % block_n))
    tiles = padded.reshape(len(weights), -1, block_n).sum(-1)
    return list(torch.split(tiles, block_m))


def seen_tiles(
    operands: Operands, block_m: int, block_n: int, n_tiles: int
) -> tuple[list[int], list[int], list[int]]:
    """`first`, `whole` and `stop` of forward.key_tiles for every tile of queries."""
    n_key = operands.key.shape[2]
    diagonal = 0 if operands.causal else n_key
    bounds = []
    for tile in range(n_tiles):
        whole = min(tile * block_m + diagonal + 1, n_key) // block_n
        stop = -(-min(tile * block_m + diagonal + block_m, n_key) // block_n)
        bounds.append((min(-(-operands.key_prefix // block_n), whole), whole, stop))
    first, inner, last = (list(side) for side in zip(*bounds, strict=True))
    return first, inner, last


MODELS = {
    "digits, 96 pixels": digits,
    "language model, held-out text": language,
    "ListOps, full length": sequence,
}


def rows(capability: int) -> Iterator[Row]:
    """Yield every head of every model at every factor."""
    for name, sites in MODELS.items():
        for layer, operands in enumerate(sites()):
            assert operands.key_positions is not None
            assert operands.bandwidth is not None
            places = operands.key_positions[operands.key_prefix :]
            extent = float((places.amax(0) - places.amin(0)).max())
            for head in range(operands.query.shape[1]):
                for factor in FACTORS:
                    one = head_of(operands, head, factor)
                    assert one.bandwidth is not None
                    yield Row(
                        name, layer, head, operands.key.shape[2], factor,
                        float(one.bandwidth[0]) / extent, **measure(one, capability),
                    )  # fmt: skip


class TileSkipping(Result):
    """Every head of every model at every factor."""

    page_title: ClassVar[str] = "Key tiles read on trained weights"

    kind: Literal["tile-skipping"] = "tile-skipping"
    command: str
    rows: tuple[Row, ...]

    def facts(self) -> list[str]:
        """Return the command."""
        return [f"command: {self.command}"]

    def tables(self) -> list[Table]:
        """Return a row per model and factor, then the curve over all heads, by bandwidth."""
        groups: dict[tuple[str, float], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.model, row.factor), []).append(row)
        by_model = [
            (
                *(name, str(group[0].tokens), f"{factor:g}"),
                f"{min(row.sigma for row in group):.4f} to {max(row.sigma for row in group):.3f}",
                *_shares(group),
            )
            for (name, factor), group in groups.items()
        ]
        by_bandwidth = []
        long = [row for row in self.rows if row.tokens > 1000]
        for low, high in itertools.pairwise((0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)):
            if group := [row for row in long if low <= row.sigma < high]:
                by_bandwidth.append((f"{low:g} to {high:g}", str(len(group)), *_shares(group)))
        shares = (">plan", ">oracle, ends", ">oracle, any", ">error")
        columns = ("model", ">tokens", ">sigma x", "sigma / extent", *shares)
        return [
            Table("By model", columns, tuple(by_model)),
            Table("By bandwidth", ("sigma / extent", ">heads", *shares), tuple(by_bandwidth)),
        ]


def _shares(group: Sequence[Row]) -> list[str]:
    """Return the means of the shares read, and the worst error."""
    columns = ([row.plan for row in group], [row.ends for row in group], [row.any for row in group])
    means = [f"{sum(column) / len(group):.0%}" for column in columns]
    return [*means, f"{max(row.error for row in group):.1e}"]


def measure_skipping(capability: int, folder: Path | None = None) -> TileSkipping:
    """Measure every head, write kernel_skipping.json, .md and .html, and return the result.

    Args:
        capability: Architecture whose block sizes are used.
        folder: For the files; None: nothing is written.

    Raises:
        UserError: Triton is missing, or there is neither a GPU nor Triton's interpreter.
    """
    try:
        from bilateral_export.op.kernel.launch import INTERPRETED
    except ImportError as error:
        raise UserError(
            "triton is not installed", 'Run: pip install "bilateral-serve[kernel]"'
        ) from error
    if not INTERPRETED and not torch.cuda.is_available():
        raise UserError("there is no GPU to run the plan on", "Set TRITON_INTERPRET=1.")
    found = TileSkipping(command=f"TRITON_INTERPRET=1 {command()}", rows=tuple(rows(capability)))
    if folder is not None:
        write(found, folder / "kernel_skipping.json")
    return found
