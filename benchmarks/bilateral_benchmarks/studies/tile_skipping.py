"""How many key tiles the plan leaves out on trained weights, and how many it could. Needs no GPU.

`TRITON_INTERPRET=1 python -m bilateral_benchmarks.studies.tile_skipping --output DIR` runs the
trained checkpoints on inputs that are longer than those they were trained on, takes queries and
keys of every head, and compares three shares of key tiles that are read:

- by the plan (op/kernel/plan.py), whose bound holds for any input;
- by an oracle that leaves out tiles from either end, as the plan does, but by the true weights;
- by an oracle that may leave out any tiles.

All three may leave out the same share of a row's weights. Counts, no times: the same on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.errors import UserError
from bilateral_export.files import to_json, write_text
from bilateral_export.models.language import LanguageModel
from bilateral_export.op.architectures import COMPILED
from bilateral_export.op.attention import spatial_logits
from bilateral_export.op.kernel import launch_config
from bilateral_export.op.operands import Operands
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.tasks import listops
from bilateral_export.text import Tokenizer

COMMAND = (
    "TRITON_INTERPRET=1 python -m bilateral_benchmarks.studies.tile_skipping"
    " --output benchmarks/results"
)
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


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
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


def watched(model: nn.Module, *inputs: Tensor) -> list[Operands]:
    """What every attention of a model is given for some inputs."""
    with torch.inference_mode(), _Watch() as watch:
        model.eval()(*inputs)
    seen: list[Operands] = watch.seen
    return seen


def digits() -> list[Operands]:
    """The digits classifier at 96 pixels: 2304 patches and the class token."""
    checkpoint = at_resolution(load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors"),
                               DIGITS_SIZE)  # fmt: skip
    with np.load(CHECKPOINTS / "digits_heldout.npz") as file:
        image = torch.from_numpy(file["images"][:1]).float()[:, None]
    image = nn.functional.interpolate(image, (DIGITS_SIZE, DIGITS_SIZE), mode="bilinear")
    return watched(checkpoint.build_model(), image / image.max())


def language() -> list[Operands]:
    """The language model on all of its held-out text at once."""
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
    return watched(longer, tokens, tokens, past, past)


def sequence() -> list[Operands]:
    """The ListOps classifier on an expression of its full length, 128 tokens at most."""
    checkpoint = load_checkpoint(CHECKPOINTS / "listops_bilateral.safetensors")
    config = listops.ListOpsConfig(max_depth=10, max_args=10, min_length=119, max_length=129)
    symbols, _ = listops.generate(config, np.random.default_rng(0))
    tokens = torch.from_numpy(listops.encode(symbols))[None]
    return watched(checkpoint.build_model(), tokens)


def head_of(operands: Operands, head: int, factor: float) -> Operands:
    """One head in float16, its bandwidth multiplied."""
    assert operands.bandwidth is not None

    def one(tokens: Tensor) -> Tensor:
        return tokens[:1, head : head + 1].half().contiguous()

    return replace(
        operands, query=one(operands.query), key=one(operands.key), value=one(operands.value),
        bandwidth=operands.bandwidth[head : head + 1] * factor,
    )  # fmt: skip


def measure(operands: Operands, capability: int) -> dict[str, float]:
    """The shares of tiles read and what the plan leaves out, for one head."""
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
    """How many tiles, from the first on, no row misses more than `budget` of."""
    return int((shares.cumsum(1).amax(0) <= budget).sum()) if shares.numel() else 0


def true_weights(operands: Operands) -> Tensor:
    """The attention weights of one head, `[N, N]` float64."""
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
    """For every tile of queries the weight of every tile of keys, `[rows, tiles]`."""
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
    """Every head of every model at every factor."""
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


def markdown(found: Sequence[Row]) -> Iterator[str]:
    """One row per model and factor, then the curve over all heads, by bandwidth."""
    yield "| model | tokens | sigma x | sigma/extent | plan | oracle, ends | oracle, any | error |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(row.model for row in found):
        for factor in FACTORS:
            yield _summary(name, [r for r in found if (r.model, r.factor) == (name, factor)])
    yield ""
    yield "| sigma / extent | heads | plan | oracle, ends | oracle, any | error |"
    yield "|---|---|---|---|---|---|"
    edges = (0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    long = [row for row in found if row.tokens > 1000]
    for low, high in itertools.pairwise(edges):
        group = [row for row in long if low <= row.sigma < high]
        if group:
            yield f"| {low:g} to {high:g} | {len(group)} | {' | '.join(_shares(group))} |"


def _summary(name: str, group: Sequence[Row]) -> str:
    sigmas = [row.sigma for row in group]
    return (
        f"| {name} | {group[0].tokens} | {group[0].factor:g} |"
        f" {min(sigmas):.4f} to {max(sigmas):.3f} | {' | '.join(_shares(group))} |"
    )


def _shares(group: Sequence[Row]) -> list[str]:
    """Means of the shares read, and the worst error."""
    means = [sum(getattr(row, name) for row in group) / len(group) for name in ("plan", "ends",
                                                                                "any")]  # fmt: skip
    return [*(f"{mean:.0%}" for mean in means), f"{max(row.error for row in group):.1e}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write kernel_skipping.json and kernel_skipping.md."""
    parser = argparse.ArgumentParser(
        prog="python -m bilateral_benchmarks.studies.tile_skipping", description=__doc__
    )
    parser.add_argument(
        "--sm",
        type=int,
        default=90,
        choices=list(COMPILED),
        help="whose block sizes to use",
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    try:
        found = list(rows(options.sm))
        text = "\n".join(markdown(found))
        print(text)
        if options.output:
            facts = {"command": COMMAND, "rows": [asdict(row) for row in found]}
            write_text(options.output / "kernel_skipping.json", to_json(facts))
            heading = f"# Key tiles read on trained weights\n\n`{COMMAND}`\n\n"
            write_text(options.output / "kernel_skipping.md", f"{heading}{text}\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
