"""Words to ids and back, and what a language model is asked for: scores and new words.

Needs numpy only and imports nothing of this package: a copy of this file lies beside a served model
(`bilateral_text.py`), so that the server computes exactly what is tested here.

A window starts at position 0 and grows to the context; then it starts again with the last half of
it. So each word has at least half a context before it (as soon as there is that much text), its
positions are those the model was trained on, and scoring a text and generating it word by word
give the same probabilities.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# tokens [1, N], targets [1, N], keys, values -> log_likelihood [1, N], log_probabilities
# [1, words], keys, values: the arguments and results of models/language.py.
Step = Callable[[Array, Array, Array, Array], tuple[Array, Array, Array, Array]]
# Their names in an exported file. One whose rows may have pasts of different lengths also takes
# where each begins; files of older versions do not.
STEP_INPUTS = ("tokens", "targets", "past_keys", "past_values")
STEP_OUTPUTS = ("log_likelihood", "log_probabilities", "keys", "values")
ALIGNED_INPUTS = (*STEP_INPUTS, "starts")

END, UNKNOWN = "<eos>", "<unk>"
SPLITS = ("words", "spaces")
# A word with inner apostrophes or points (don't, e.g), a number, or one other character.
_WORD = re.compile(r"\w+(?:['.]\w+)*|[^\w\s]")
_NO_SPACE_BEFORE = frozenset(".,;:!?)]}%'\"")
_NO_SPACE_AFTER = frozenset("([{")


class Tokenizer:
    """A word-level vocabulary: the end of a line is `<eos>`, a word outside it `<unk>`.

    Args:
        vocabulary: The words by id, `<eos>` and `<unk>` among them.
        split: "words" cuts at spaces and around punctuation; "spaces" at spaces only.

    Raises:
        ValueError: The vocabulary has a word twice or lacks a special one.
    """

    def __init__(self, vocabulary: Sequence[str], split: str = "words") -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        self.words = tuple(vocabulary)
        self.split = split
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) != len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise ValueError(f"the vocabulary has {twice!r} twice")
        for special in (END, UNKNOWN):
            if special not in self._ids:
                raise ValueError(f"the vocabulary has no {special}")
        self.end, self.unknown = self._ids[END], self._ids[UNKNOWN]

    @classmethod
    def trained(cls, text: str, least: int, split: str = "words") -> Tokenizer:
        """The words that occur `least` times or more, most frequent first."""
        lines = _unmarked(text).splitlines()
        counts = Counter(word for line in lines for word in _cut(line, split))
        for special in (END, UNKNOWN):
            counts.pop(special, None)
        kept = sorted((w for w, n in counts.items() if n >= least), key=lambda w: (-counts[w], w))
        return cls([END, UNKNOWN, *kept], split)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; every line but the last ends with `<eos>`.

        A byte-order mark before it, which editors write into files, is not a part of it.
        """
        ids: list[int] = []
        for number, line in enumerate(_unmarked(text).split("\n")):
            ids += [self.end] * (number > 0)
            ids += [self._ids.get(word, self.unknown) for word in _cut(line, self.split)]
        return ids

    def piece(self, token: int, before: int | None = None) -> str:
        """What a word adds to the text: itself, and a space unless it joins the word before."""
        word = self.words[token]
        if token == self.end:
            return "\n"
        if before is None or before == self.end:
            return word
        joined = self.split == "words" and (
            word in _NO_SPACE_BEFORE or self.words[before] in _NO_SPACE_AFTER
        )
        return word if joined else f" {word}"

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids: the pieces one after the other."""
        pairs = zip(tokens, [None, *tokens], strict=False)
        return "".join(self.piece(token, before) for token, before in pairs)

    @property
    def sha256(self) -> str:
        """Of the vocabulary, one word a line."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()


def _unmarked(text: str) -> str:
    return text.removeprefix("\ufeff")


def _cut(line: str, split: str) -> list[str]:
    if split == "spaces":
        return line.split()
    cut: list[str] = []
    for part in re.split(f"({END}|{UNKNOWN})", line):
        cut += [part] if part in (END, UNKNOWN) else _WORD.findall(part)
    return cut


# What the tensors of a served model hold: int32 and int64.
MOST = 2**31 - 1
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """How the next word is drawn.

    Attributes:
        max_tokens: Most words to generate.
        temperature: 0 takes the most probable word; 1 the model's own distribution.
        top_k: Only the so many most probable words; 0: all.
        top_p: Only the most probable words that together have this probability.
        seed: Of the random numbers; the same seed gives the same text.
        stop: Generation ends when the new text contains one of these.
    """

    max_tokens: int = 50
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = {
            f"max_tokens {self.max_tokens}: it must be from 0 to {MOST}": not 0
            <= self.max_tokens
            <= MOST,
            f"temperature {self.temperature}: it must be 0 or above, and at most 1e6": not 0
            <= self.temperature
            <= 1e6,
            f"top_k {self.top_k}: it must be from 0 (all words) to {MOST}": not 0
            <= self.top_k
            <= MOST,
            f"top_p {self.top_p}: it must be above 0 and at most 1": not 0
            < np.float32(self.top_p)
            <= 1,
            f"seed {self.seed}: it must be from 0 to {LARGEST_SEED}": not 0
            <= self.seed
            <= LARGEST_SEED,
            "stop: an empty text stops nothing": "" in self.stop,
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(problem)


@dataclass(frozen=True)
class Word:
    """One generated word: its id, what it adds to the text, its log-probability."""

    token: int
    text: str
    log_likelihood: float


def step_feed(arrays: Sequence[Array], inputs: Collection[str]) -> dict[str, Array]:
    """Name the arguments of a `Step` for an exported file; one text begins at column 0.

    Args:
        arrays: The arguments.
        inputs: What the file takes, among other things.
    """
    feed = dict(zip(STEP_INPUTS, arrays, strict=True))
    if ALIGNED_INPUTS[-1] in inputs:
        feed[ALIGNED_INPUTS[-1]] = np.zeros((1, 1), np.int64)
    return feed


class Reader:
    """Feeds a model token by token and keeps its cache, window by window.

    Args:
        step: One run of the model.
        cache_shape: Of the keys for an empty past: `(1, depth, heads, 0, head_dim)`.
        context: Longest window.
        use_cache: False runs every window from its start again: slow, the same results.
    """

    def __init__(
        self, step: Step, cache_shape: tuple[int, ...], context: int, use_cache: bool = True
    ) -> None:
        self._step = step
        self._empty = np.zeros(cache_shape, np.float32)
        self._context = context
        self._use_cache = use_cache
        self._window: list[int] = []
        self._keys = self._values = self._empty

    def read(self, tokens: Sequence[int], targets: Sequence[int]) -> tuple[list[float], Array]:
        """Read tokens.

        Args:
            tokens: At least one id.
            targets: The id after each.

        Returns:
            The log-likelihood of each target, and the log-probabilities `[words]` of what follows
            the last token.
        """
        likelihoods: list[float] = []
        start = 0
        while start < len(tokens):
            if len(self._window) == self._context:
                # Read the last half again, at the positions it has now.
                half = self._window[-(self._context // 2) :]
                self._forget()
                self._run(half, half)
            room = self._context - len(self._window)
            piece = list(tokens[start : start + room])
            scored, after = self._run(piece, list(targets[start : start + room]))
            likelihoods += scored
            start += len(piece)
        return likelihoods, after

    def _forget(self) -> None:
        self._window = []
        self._keys = self._values = self._empty

    def _run(self, tokens: list[int], targets: list[int]) -> tuple[list[float], Array]:
        count = len(tokens)
        if not self._use_cache:
            tokens = self._window + tokens
            targets = [0] * len(self._window) + targets
            self._forget()
        self._window = self._window + tokens
        likelihood, after, self._keys, self._values = self._step(
            np.array([tokens], np.int64), np.array([targets], np.int64), self._keys, self._values
        )
        return [float(value) for value in likelihood[0, -count:]], after[0]


def score(reader: Reader, tokens: Sequence[int], end: int) -> list[float]:
    """The log-likelihood (natural logarithm) of each token of a text of any length.

    A text begins after an `<eos>`, so that its first word has a likelihood too.
    """
    return reader.read([end, *tokens[:-1]], tokens)[0] if tokens else []


def perplexity(likelihoods: Sequence[float]) -> float:
    """Exp of the mean negative log-likelihood."""
    return float(np.exp(-np.mean(likelihoods)))


def generate(
    reader: Reader, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling
) -> Iterator[Word]:
    """New words after a prompt, one by one, until `max_tokens` or a stop text.

    The stop text itself is yielded with the word that completes it.
    """
    generation = Generation(tokenizer, prompt, sampling)
    while not generation.ended:
        _, after = reader.read(generation.unread, generation.unread)
        yield generation.draw(after)


class Generation:
    """A text that grows word by word, by what a model says follows.

    Args:
        tokenizer: The model's.
        prompt: The words to go on after.
        sampling: How the next ones are drawn, and when it ends.

    Attributes:
        unread: What the model has to read before the next word is drawn.
        ended: Whether no further word is wanted.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling) -> None:
        self._tokenizer, self._sampling = tokenizer, sampling
        self._random = np.random.default_rng(sampling.seed)
        self._before = prompt[-1] if prompt else None
        self._text, self._count = "", 0
        self.unread: list[int] = [tokenizer.end, *prompt]
        self.ended = sampling.max_tokens == 0

    def draw(self, log_probabilities: Array) -> Word:
        """The next word, of the log-probabilities `[words]` after the last one."""
        token = draw(log_probabilities, self._sampling, self._random)
        piece = self._tokenizer.piece(token, self._before)
        self._text, self._count = self._text + piece, self._count + 1
        self.unread, self._before = [token], token
        self.ended = self._count == self._sampling.max_tokens or any(
            stop in self._text for stop in self._sampling.stop
        )
        return Word(token, piece, float(log_probabilities[token]))


# Of a trained model the first so many words have nearly all of the probability.
_LIKELY = 1024


def draw(log_probabilities: Array, sampling: Sampling, random: np.random.Generator) -> int:
    """Draw a word: temperature first, then top-k, then top-p (nucleus; Holtzman et al., 2020).

    Words are ordered by falling probability, equal ones by their id, and only as far down as
    needed: sorting a large vocabulary takes longer than a step of the model.
    """
    if sampling.temperature == 0:
        return int(log_probabilities.argmax())
    level = random.random()
    top, heat = log_probabilities.max(), sampling.temperature
    count = min(sampling.top_k or len(log_probabilities), len(log_probabilities))
    likely = count if sampling.top_k else min(_LIKELY, count)
    mass = np.exp((log_probabilities - top) / np.float32(max(heat, 1e-30))).sum(dtype=np.float64)
    while True:
        order = most_probable(log_probabilities, likely)
        logits = (log_probabilities[order].astype(np.float64) - top) / heat
        cumulative = np.cumsum(np.exp(logits))
        if likely == count:
            mass = cumulative[-1]
        # The word that crosses the threshold is still in.
        kept = int(np.searchsorted(cumulative, sampling.top_p * mass)) + 1
        if sampling.top_p < 1 and kept <= likely:
            mass = cumulative[kept - 1]
        place = int(np.searchsorted(cumulative, level * mass, side="right"))
        if likely == count or (place < likely and (sampling.top_p == 1 or kept <= likely)):
            return int(order[min(place, kept - 1, likely - 1)])
        likely = min(likely * 16, count)


def most_probable(log_probabilities: Array, count: int) -> Array:
    """The ids of the `count` most probable words, by falling probability and rising id."""
    if count < len(log_probabilities):
        least = np.partition(log_probabilities, -count)[-count]
        ids = np.flatnonzero(log_probabilities >= least)
    else:
        ids = np.arange(len(log_probabilities))
    return ids[np.argsort(-log_probabilities[ids], kind="stable")][:count]


def last_window(count: int, context: int) -> int:
    """Where the window begins in which `Reader` reads the last of `count` tokens."""
    step = context - context // 2
    return max(0, -(-(count - context) // step)) * step
