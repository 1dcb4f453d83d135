"""Train the committed ListOps checkpoint: bilateral attention with learned GRC.

    python export/checkpoints/train_listops.py

Data: `bilateral_export.tasks.listops`, the benchmark's generator, with smaller trees than the
benchmark's (depth 4 instead of 10, up to 5 arguments instead of 10, up to 47 symbols instead of
2,000), so that minutes on a CPU are enough. The held-out expressions are different ones. Writes
`listops_bilateral.safetensors` and a few held-out expressions with their values:
`listops_heldout.tsv`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.registry import build, named
from bilateral_export.preprocessing import ListOpsPreprocessing
from bilateral_export.tasks import listops
from bilateral_export.tasks.listops import SYMBOLS, ListOpsConfig

HERE = Path(__file__).parent
NAME = "listops_bilateral"
TREES = ListOpsConfig(max_depth=4, max_args=5, min_length=3, max_length=48)
SEED, HELDOUT_SEED = 0, 1
EXPRESSIONS, HELDOUT = 60_000, 4_000
STEPS = 3_000
BATCH = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
SHOWN = 64

Data = tuple[np.ndarray, np.ndarray]


def load_split() -> tuple[Data, Data]:
    """Token ids and values of the training and the held-out expressions, which share none."""
    training = listops.batch(TREES, EXPRESSIONS, np.random.default_rng(SEED))
    known = {row[row > 0].tobytes() for row in training[0]}
    tokens, values = listops.batch(TREES, HELDOUT, np.random.default_rng(HELDOUT_SEED))
    new = np.array([row[row > 0].tobytes() not in known for row in tokens])
    return training, (tokens[new], values[new])


def train(config: FamilyConfig, data: Data) -> nn.Module:
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    model = build(config).train()
    # Neighbours in a list sorted by length make a batch with little padding.
    lengths = (data[0] > 0).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    tokens, values = (torch.from_numpy(array[order]) for array in data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1
    )
    for _ in track(range(STEPS), description=NAME):
        start = int(random.integers(0, len(tokens) - BATCH))
        batch = slice(start, start + BATCH)
        longest = int(lengths[order[start + BATCH - 1]])
        loss = F.cross_entropy(model(tokens[batch, :longest]), values[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    tokens, values = data
    predicted = [model(torch.from_numpy(piece)).argmax(-1) for piece in np.array_split(tokens, 16)]
    return float((torch.cat(predicted).numpy() == values).mean())


def save_heldout(data: Data, path: Path) -> None:
    rows = (
        f"{' '.join(SYMBOLS[token - 1] for token in row[row > 0])}\t{value}\n"
        for row, value in zip(*data, strict=True)
    )
    path.write_text("".join([row for row, _ in zip(rows, range(SHOWN), strict=False)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="directory to write to")
    directory = parser.parse_args().out
    directory.mkdir(parents=True, exist_ok=True)
    training, heldout = load_split()
    config = named(NAME)
    start = time.monotonic()
    model = train(config, training)
    seconds = time.monotonic() - start
    card = CheckpointCard(
        name=NAME,
        model=config,
        labels=tuple(str(digit) for digit in range(10)),
        preprocessing=ListOpsPreprocessing(length=config.length),
        license="Apache-2.0",
        training={
            "data": f"generated: {TREES}",
            "expressions": EXPRESSIONS,
            "heldout_expressions": len(heldout[1]),
            "heldout_accuracy": round(accuracy(model, heldout), 4),
            "heldout_majority": round(float(np.bincount(heldout[1]).max() / len(heldout[1])), 4),
            "steps": STEPS,
            "seed": SEED,
        },
    )
    save_checkpoint(directory / f"{NAME}.safetensors", model.state_dict(), card)
    save_heldout(heldout, directory / "listops_heldout.tsv")
    print(f"{NAME}: {card.training}, trained in {seconds:.0f} s")


if __name__ == "__main__":
    main()
