"""Time to first word and words a second of a language model, for one stream and for several."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from bilateral_benchmarks.experiments.contenders import checkpoint_for, checkpoint_of
from bilateral_benchmarks.experiments.static_cache import StaticCacheRunner
from bilateral_benchmarks.load.ports import free_port
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import Quantity, Result
from bilateral_benchmarks.report.tables import Table, number
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import lower
from bilateral_export.models.language import LanguageModel
from bilateral_export.preprocessing import TextPreprocessing
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array
from bilateral_export.text import Tokenizer
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

MODEL = "wikitext103_bilateral_small"
CLASSIFIERS = ("lra_bilateral_text", "lra_bilateral_retrieval")
STREAMS = (1, 8)
SERVED, EAGER, STATIC = "served, streams together", "eager torch", "ONNX Runtime, static cache"
GOAL = 4.0
# From so many rounds on the median lies between the lowest and the highest with 95 %.
ENOUGH = 6


class Run(BaseModel):
    """One way to continue some texts at once.

    Attributes:
        first_ms: Median over rounds of the mean time until a text's first word.
        words_per_s: Median over rounds of all words a second, prompts included in the time.
        spread: Lowest and highest of these.
    """

    model_config = ConfigDict(frozen=True)

    contender: str
    streams: int
    first_ms: float
    words_per_s: float
    spread: tuple[float, float]


class Classifier(BaseModel):
    """One long sequence, in eager torch and in ONNX Runtime from the lowered file."""

    model_config = ConfigDict(frozen=True)

    model: str
    tokens: int
    eager_ms: float
    onnxruntime_ms: float
    ratio: float


class Language(Result):
    """All contenders.

    Attributes:
        gains: Words a second of the most streams over those of one, served, by round.
        deviation: Largest difference of a greedy word's log-probability between streams that ran
            together and the same stream alone, as far as the words are the same.
        same_words: The share of words that are the same.
    """

    kind: Literal["language"] = "language"
    model: str
    prompt: int
    words: int
    rounds: int
    runs: tuple[Run, ...]
    gains: tuple[float, ...]
    deviation: float
    same_words: float
    classifiers: tuple[Classifier, ...]
    context: Context

    def tables(self) -> list[Table]:
        """Return the streams, and the classifiers where they were measured."""
        rows = tuple(
            (
                run.contender,
                str(run.streams),
                number(run.first_ms),
                number(run.words_per_s),
                f"{run.spread[0]:.0f} to {run.spread[1]:.0f}",
            )
            for run in self.runs
        )
        most = max(run.streams for run in self.runs)
        gain, low, high = np.median(self.gains), min(self.gains), max(self.gains)
        verdict = "met" if low >= GOAL else "missed" if high < GOAL else "undecided here"
        notes = (
            f"Served, {most} streams give {gain:.2f} times the words a second of one ({low:.2f} to"
            f" {high:.2f} by round); the goal of {GOAL:g} is {verdict}.",
            f"Streams together against each alone: {self.same_words:.2%} of the words are the same,"
            f" and their log-probabilities differ by {self.deviation:.1e} at most.",
        )
        title = (
            f"{self.model}: {self.words} greedy words after a prompt of {self.prompt},"
            f" {self.rounds} interleaved rounds"
        )
        columns = ("", ">streams", ">first word ms", ">words/s", ">lowest to highest")
        tables = [Table(title, columns, rows, notes)]
        if self.classifiers:
            found = tuple(
                (
                    one.model,
                    f"{one.tokens:,}",
                    number(one.eager_ms),
                    number(one.onnxruntime_ms),
                    number(one.ratio),
                )
                for one in self.classifiers
            )
            heads = ("", ">tokens", ">eager ms", ">ONNX Runtime ms", ">times faster")
            tables.append(Table("Long sequences, one each", heads, found))
        return tables

    def quantities(self) -> list[Quantity]:
        """Return the words a second of each; the lowest and highest round bound the median."""
        enough = self.rounds >= ENOUGH
        return [
            Quantity(
                f"{self.model}, {run.contender}, {run.streams} streams",
                "words/s",
                run.words_per_s,
                run.spread[0] if enough else None,
                run.spread[1] if enough else None,
                self.context,
                more_is_better=True,
                shapes=(("prompt", (self.prompt,)), ("words", (self.words,))),
            )
            for run in self.runs
        ]


class Continues(Protocol):
    """Reads prompts and then words, of all texts at once."""

    def begin(self, tokens: Array) -> Array:
        """Read prompts `[B, N]`; return log-probabilities `[B, words]`."""

    def read(self, tokens: Array) -> Array:
        """Read words `[B, 1]`; return log-probabilities `[B, words]`."""


class EagerRunner:
    """The model in eager torch; its cache grows by concatenation, as it does in the graph."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def begin(self, tokens: Array) -> Array:
        """Read prompts `[B, N]`; return log-probabilities `[B, words]`."""
        c = self._model.config
        self._keys = self._values = torch.zeros(len(tokens), c.depth, c.heads, 0, c.dim // c.heads)
        return self.read(tokens)

    def read(self, tokens: Array) -> Array:
        """Read words `[B, N]`; return log-probabilities `[B, words]`."""
        given = torch.from_numpy(np.ascontiguousarray(tokens))
        with torch.inference_mode():
            _, after, self._keys, self._values = self._model(
                given, given[:, -1:], self._keys, self._values
            )
        found: Array = after.numpy()
        return found


Timed = tuple[float, float]  # ms to the first word, words a second


def measure_language(
    model: str = MODEL,
    *,
    checkpoints: Path = Path("export/checkpoints"),
    streams: Sequence[int] = STREAMS,
    prompt: int = 32,
    words: int = 64,
    rounds: int = ENOUGH,
    classifiers: Sequence[str] = CLASSIFIERS,
    on_step: Callable[[str], None] = lambda _: None,
) -> Language:
    """Measure a language model served, in eager torch and in ONNX Runtime with a static cache.

    The contenders are interleaved. A model without a committed checkpoint has random weights, on
    which speed does not depend.

    Raises:
        UserError: There is no such model.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        on_step("exporting")
        checkpoint = checkpoint_for(model, checkpoints, folder)
        built = checkpoint.build_model()
        assert isinstance(built, LanguageModel)
        how = checkpoint.card.preprocessing
        assert isinstance(how, TextPreprocessing)
        tokenizer = Tokenizer(how.vocabulary, how.split)
        path = export_onnx(checkpoint, folder / "model.onnx").path
        client = stack.enter_context(_served(path, folder, max(streams)))
        local: dict[str, Continues] = {
            EAGER: EagerRunner(built),
            STATIC: StaticCacheRunner(built, folder, len(os.sched_getaffinity(0))),
        }
        prompts = _prompts(tokenizer, max(streams), prompt)
        _check(local, np.array(prompts))
        answers: dict[tuple[int, int], list[Any]] = {}
        timed: dict[tuple[str, int], list[Timed]] = {}
        for number_of_round in range(rounds + 1):  # the first warms up
            for count in streams:
                for name in (SERVED, *local):
                    on_step(f"round {number_of_round} of {rounds}: {name}, {count} streams")
                    if name == SERVED:
                        found = _stream(client, tokenizer, prompts[:count], words, answers)
                    else:
                        found = _continue(local[name], np.array(prompts[:count]), words)
                    if number_of_round:
                        timed.setdefault((name, count), []).append(found)
        same, deviation = _compare(client, tokenizer, prompts, words, answers)
    on_step("classifiers")
    return Language(
        model=model,
        prompt=prompt,
        words=words,
        rounds=rounds,
        runs=tuple(_summary(*key, found) for key, found in timed.items()),
        gains=_gains(timed, streams),
        same_words=same,
        deviation=deviation,
        classifiers=tuple(map(_classifier, classifiers)),
        context=Context.now(),
    )


@contextmanager
def _served(path: Path, folder: Path, streams: int) -> Iterator[Client]:
    settings = Settings(stream=True, max_batch_size=streams)
    repository.add("words", path, folder / "models", settings=settings)
    options = ServerOptions(
        folder / "models", grpc_port=free_port(), http_port=None, metrics_port=None
    )
    with running(options) as server, Client(server.url, timeout_s=300) as client:
        yield client


def _prompts(tokenizer: Tokenizer, count: int, length: int) -> list[list[int]]:
    """Return `<eos>` and random words; none that would be read back as another."""
    random = np.random.default_rng(0)
    plain = [n for n, word in enumerate(tokenizer.words[:5000]) if word.isalpha()]
    drawn = random.choice(plain, (count, length - 1))
    return [[tokenizer.end, *map(int, row)] for row in drawn]


def _check(local: dict[str, Continues], prompts: Array) -> None:
    """Make sure that the contenders compute the same model."""
    found = []
    for runner in local.values():
        words = runner.begin(prompts).argmax(-1)[:, None]
        found.append(runner.read(words))
    if not np.allclose(found[0].astype(float), found[1].astype(float), atol=1e-3):
        raise AssertionError("the static cache does not compute what eager torch computes")


def _stream(
    client: Client,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    words: int,
    answers: dict[tuple[int, int], list[Any]],
) -> Timed:
    firsts = [0.0] * len(prompts)

    def ask(number: int) -> None:
        text = tokenizer.decode(prompts[number][1:])
        stream = client.generate("words", text, max_tokens=words, temperature=0)
        found = [next(stream)]
        firsts[number] = time.perf_counter() - began
        found += stream
        answers[len(prompts), number] = found

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    return 1e3 * float(np.mean(firsts)), len(prompts) * words / seconds


def _continue(runner: Continues, prompts: Array, words: int) -> Timed:
    began = time.perf_counter()
    tokens = runner.begin(prompts).argmax(-1)[:, None]
    first = time.perf_counter() - began
    for _ in range(words - 1):
        tokens = runner.read(tokens).argmax(-1)[:, None]
    return 1e3 * first, len(prompts) * words / (time.perf_counter() - began)


def _compare(
    client: Client,
    tokenizer: Tokenizer,
    prompts: Sequence[list[int]],
    words: int,
    answers: dict[tuple[int, int], list[Any]],
) -> tuple[float, float]:
    """Return the share of equal words, together and alone, and how far likelihoods differ."""
    same, differences = 0, [0.0]
    for row, prompt in enumerate(prompts):
        together = answers[len(prompts), row]
        alone: dict[tuple[int, int], list[Any]] = {}
        _stream(client, tokenizer, [prompt], words, alone)
        for one, other in zip(together, alone[1, 0], strict=True):
            if one.token != other.token:
                break
            same += 1
            differences.append(abs(one.log_likelihood - other.log_likelihood))
    return same / (len(prompts) * words), max(differences)


def _summary(contender: str, streams: int, found: Sequence[Timed]) -> Run:
    rates = [rate for _, rate in found]
    return Run(
        contender=contender,
        streams=streams,
        first_ms=float(np.median([first for first, _ in found])),
        words_per_s=float(np.median(rates)),
        spread=(min(rates), max(rates)),
    )


def _gains(timed: dict[tuple[str, int], list[Timed]], streams: Sequence[int]) -> tuple[float, ...]:
    one, most = (timed[SERVED, count] for count in (min(streams), max(streams)))
    return tuple(m[1] / o[1] for o, m in zip(one, most, strict=True))


def _classifier(name: str, rounds: int = 5) -> Classifier:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = checkpoint_of(name, folder)
        model = checkpoint.build_model()
        corner = model.corners()[0]
        arrays = model.example(1, np.random.default_rng(0), **corner)
        exported = export_onnx(checkpoint, folder / "model.onnx").path
        lowered = lower(exported, "onnxruntime-cpu", folder / "lowered.onnx").path
        times: list[tuple[float, float]] = []
        with TorchRunner(checkpoint) as eager, OnnxRuntimeRunner(lowered) as ours:
            for _ in range(rounds + 1):
                moments = [time.perf_counter()]
                for runner in (eager, ours):
                    runner.run(arrays)
                    moments.append(time.perf_counter())
                times.append((moments[1] - moments[0], moments[2] - moments[1]))
        kept = 1e3 * np.array(times[1:])
    return Classifier(
        model=name,
        tokens=corner["length"],
        eager_ms=float(np.median(kept[:, 0])),
        onnxruntime_ms=float(np.median(kept[:, 1])),
        ratio=float(np.median(kept[:, 0] / kept[:, 1])),
    )
