"""Train the committed digits checkpoints: {bilateral, plain} attention x {learned GRC, standard}.

    python export/checkpoints/train_digits.py

Data: scikit-learn's copy of UCI "Optical Recognition of Handwritten Digits" (test set): 1,797 real
8x8 scans (Alpaydin and Kaynak, 1998; CC BY 4.0). One in five, stratified by class with a fixed
seed, is held out and never trained on. Writes `digits_*.safetensors`, and the held-out images
as `digits_heldout.npz` and, two of each class, as PNG files.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.metadata import ImagePreprocessing
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build, named

HERE = Path(__file__).parent
NAMES = ("digits_bilateral", "digits_plain", "digits_bilateral_standard", "digits_plain_grc")
# Of the split, whichever seed a model is trained with.
SEED = 0
EPOCHS = 60
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
MEAN, STD = 0.3, 0.35


@dataclass(frozen=True)
class Split:
    """Images `[n, 8, 8]` in 0..255 and their classes."""

    images: np.ndarray
    labels: np.ndarray


def load_split() -> tuple[Split, Split]:
    data = load_digits()
    # The scans have 17 grey levels; as 8-bit images they can be stored as PNG without loss.
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=SEED
    )
    return Split(train_x, train_y), Split(test_x, test_y)


def normalise(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images).float()[:, None] / 255 - MEAN) / STD


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to one pixel in each direction, background filled in."""
    background = (0 - MEAN) / STD
    padded = F.pad(images, (1, 1, 1, 1), value=background)
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    rows = offsets[:, 0, None] + torch.arange(8)
    columns = offsets[:, 1, None] + torch.arange(8)
    index = torch.arange(len(images))[:, None, None]
    return padded[index, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(config: ImageClassifierConfig, split: Split, name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build(config).train()
    images, labels = normalise(split.images), torch.from_numpy(split.labels)
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in track(range(EPOCHS), description=name):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            logits = model(shifted(images[batch], generator))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    predicted = model(normalise(split.images)).argmax(-1).numpy()
    return float((predicted == split.labels).mean())


def save_heldout(split: Split, directory: Path) -> None:
    np.savez_compressed(directory / "digits_heldout.npz", images=split.images, labels=split.labels)
    folder = directory / "digits"
    folder.mkdir(exist_ok=True)
    for digit in range(10):
        for number, image in enumerate(split.images[split.labels == digit][:2]):
            Image.fromarray(image).save(folder / f"{digit}-{number}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="directory to write to")
    parser.add_argument("--seed", type=int, default=SEED, help="of initial weights and batches")
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="which to train")
    arguments = parser.parse_args()
    directory = arguments.out
    directory.mkdir(parents=True, exist_ok=True)
    training, heldout = load_split()
    save_heldout(heldout, directory)
    for name in arguments.only:
        config = named(name)
        start = time.monotonic()
        model = train(config, training, name, arguments.seed)
        reached = accuracy(model, heldout)
        card = CheckpointCard(
            name=name,
            model=config,
            labels=tuple(str(digit) for digit in range(10)),
            preprocessing=ImagePreprocessing(
                height=8, width=8, channels=1, resize=8, mean=(MEAN,), std=(STD,)
            ),
            license="CC-BY-4.0",
            training={
                "data": "UCI Optical Recognition of Handwritten Digits, as in scikit-learn",
                "images": len(training.images),
                "heldout_images": len(heldout.images),
                "heldout_accuracy": round(reached, 4),
                "epochs": EPOCHS,
                "seed": arguments.seed,
            },
        )
        save_checkpoint(directory / f"{name}.safetensors", model.state_dict(), card)
        print(
            f"{name}: held-out accuracy {reached:.4f} on {len(heldout.images)} images,"
            f" trained in {time.monotonic() - start:.0f} s"
        )


if __name__ == "__main__":
    main()
