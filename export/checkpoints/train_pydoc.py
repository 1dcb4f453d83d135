"""Train the committed small language model: bilateral attention with learned GRC, word level.

    python export/checkpoints/train_pydoc.py

Data: the topics of Python's own help, a part of its language reference that is installed with
CPython (`pydoc_data.topics`; copyright Python Software Foundation, licence PSF-2.0). Paragraphs are
taken once each and put on one line; every tenth, in the order of the SHA-256 of its text, is held
out and never trained on. The reference repeats itself: a held-out paragraph of whose eight-word
sequences one in ten or more occurs in the training text is dropped. Writes
`pydoc_bilateral.safetensors` and, as an example to score, a part of what was held out:
`pydoc_heldout.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import re
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.models.registry import build, named
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.text import Reader, Tokenizer, perplexity, score

HERE = Path(__file__).parent
NAME = "pydoc_bilateral"
SEED = 0
EPOCHS = 16
BATCH = 16
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.1
# Share of the input words replaced by <unk>: the text is small, and a model must not learn it by
# heart.
WORD_DROPOUT = 0.15
HELDOUT_LINES = 40
REPEATED = 0.1


def load_split() -> tuple[str, str]:
    """The training text and the held-out text, one paragraph a line."""
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(topics.values()))
    lines = {" ".join(paragraph.split()) for paragraph in paragraphs}
    ordered = sorted(lines - {""}, key=lambda line: hashlib.sha256(line.encode()).digest())
    training = [line for number, line in enumerate(ordered) if number % 10]
    known = {sequence for line in training for sequence in _sequences(line)}
    heldout = [line for line in ordered[::10] if _share(_sequences(line), known) < REPEATED]
    return "\n".join(training), "\n".join(heldout)


def _sequences(line: str) -> set[tuple[str, ...]]:
    words = line.split()
    return {tuple(words[start : start + 8]) for start in range(max(1, len(words) - 7))}


def _share(sequences: set[tuple[str, ...]], known: set[tuple[str, ...]]) -> float:
    return len(sequences & known) / len(sequences)


def likelihood(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    config: LanguageModelConfig = model.config
    shape = (len(tokens), config.depth, config.heads, 0, config.dim // config.heads)
    result: Tensor = model(tokens, targets, torch.zeros(shape), torch.zeros(shape))[0]
    return result


def train(config: LanguageModelConfig, tokenizer: Tokenizer, text: str) -> nn.Module:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = build(config).train()
    ids = torch.tensor([tokenizer.end, *tokenizer.encode(text)])
    window = config.context
    steps_per_epoch = (len(ids) - window) // (BATCH * window)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * steps_per_epoch, pct_start=0.1
    )
    for _ in track(range(EPOCHS), description=NAME):
        for _ in range(steps_per_epoch):
            starts = torch.randint(0, len(ids) - window, (BATCH, 1), generator=generator)
            index = starts + torch.arange(window)
            hidden = torch.rand(index.shape, generator=generator) < WORD_DROPOUT
            tokens = ids[index].masked_fill(hidden, tokenizer.unknown)
            loss = -likelihood(model, tokens, ids[index + 1]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def heldout_perplexity(model: nn.Module, tokenizer: Tokenizer, text: str) -> float:
    config: LanguageModelConfig = model.config

    def step(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(tensor.numpy() for tensor in model(*map(torch.from_numpy, arrays)))

    shape = (1, config.depth, config.heads, 0, config.dim // config.heads)
    reader = Reader(step, shape, config.context)
    return perplexity(score(reader, tokenizer.encode(text), tokenizer.end))


def unigram_perplexity(tokenizer: Tokenizer, text: str, heldout: str) -> float:
    """What word frequencies alone reach (add-one smoothing): the number to beat."""
    counts = np.bincount(tokenizer.encode(text), minlength=len(tokenizer.words)) + 1.0
    return perplexity(np.log(counts / counts.sum())[tokenizer.encode(heldout)].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="directory to write to")
    directory = parser.parse_args().out
    directory.mkdir(parents=True, exist_ok=True)
    text, heldout = load_split()
    tokenizer = Tokenizer.trained(text, least=2)
    config = named(NAME)
    assert isinstance(config, LanguageModelConfig)
    if config.vocabulary != len(tokenizer.words):
        # Another Python has another text; the zoo's entry describes the committed checkpoint.
        config = config.model_copy(update={"vocabulary": len(tokenizer.words)})
    start = time.monotonic()
    model = train(config, tokenizer, text)
    seconds = time.monotonic() - start
    reached = heldout_perplexity(model, tokenizer, heldout)
    card = CheckpointCard(
        name=NAME,
        model=config,
        preprocessing=TextPreprocessing(
            vocabulary=tokenizer.words,
            vocabulary_sha256=tokenizer.sha256,
            split="words",
            context=config.context,
        ),
        license="PSF-2.0",
        training={
            "data": f"pydoc_data.topics of Python {platform.python_version()}",
            "words": len(tokenizer.encode(text)),
            "heldout_words": len(tokenizer.encode(heldout)),
            "heldout_perplexity": round(reached, 2),
            "unigram_perplexity": round(unigram_perplexity(tokenizer, text, heldout), 2),
            "epochs": EPOCHS,
            "seed": SEED,
        },
    )
    save_checkpoint(directory / f"{NAME}.safetensors", model.state_dict(), card)
    (directory / "pydoc_heldout.txt").write_text("\n".join(heldout.split("\n")[:HELDOUT_LINES]))
    print(f"{NAME}: {card.training}, trained in {seconds:.0f} s")


if __name__ == "__main__":
    main()
