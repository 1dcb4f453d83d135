"""Streams that advance together give what each gives alone, whoever joins or leaves meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.builders.exported import exported

import bilateral_export.text
from bilateral_export.artifact import read_onnx
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.text import Generation, Reader, Sampling, Tokenizer, Word, generate

BACKEND = Path(__file__).parents[3] / "serving" / "bilateral_serving" / "python_backend"
INPUTS = ("tokens", "targets", "past_keys", "past_values", "starts")
OUTPUTS = ("log_likelihood", "log_probabilities", "keys", "values")
# A word's log-probability, together and alone. LANGUAGE.md states it.
BUDGET = 1e-4
CONTEXT = 12


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    """The modules as they lie beside a served model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BACKEND))
        patch.setitem(sys.modules, "bilateral_text", bilateral_export.text)
        import stream_batch
        import stream_together

        yield (stream_batch.Batch, stream_together.Together)
        for name in ("stream_batch", "stream_together"):
            patch.delitem(sys.modules, name)


@dataclass
class Model:
    """The committed model, with a short context, so that windows move often."""

    runner: OnnxRuntimeRunner
    tokenizer: Tokenizer
    shape: tuple[int, ...]
    rows: list[int] = field(default_factory=list)

    def step(self, *arrays: Any) -> Any:
        self.rows.append(len(arrays[0]))
        found = self.runner.run(dict(zip(INPUTS, arrays, strict=True)))
        return tuple(found[name] for name in OUTPUTS)

    def alone(self, prompt: list[int], sampling: Sampling) -> list[Word]:
        def step(*arrays: Any) -> Any:
            return self.step(*arrays, np.zeros((1, 1), np.int64))

        return list(generate(Reader(step, self.shape, CONTEXT), self.tokenizer, prompt, sampling))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = exported("pydoc_bilateral", tmp_path_factory)
    about = read_onnx(path).metadata
    assert about is not None
    config, text = about.model, about.model_dump()["preprocessing"]
    shape = (1, config["depth"], config["heads"], 0, config["dim"] // config["heads"])
    with OnnxRuntimeRunner(path, threads=1) as runner:
        yield Model(runner, Tokenizer(text["vocabulary"], text["split"]), shape)


@dataclass
class Caller:
    """A stream with its request, and what became of it."""

    prompt: list[int]
    sampling: Sampling
    arrives: int = 0
    stays: int = 1000
    words: list[Word] = field(default_factory=list)
    ended: list[Exception | None] = field(default_factory=list)


def together(backend: Any, model: Model, callers: list[Caller], limit: int) -> None:
    """Advance all, each from when it arrives until it ends or leaves."""

    def is_left(caller: Caller) -> bool:
        if caller.sampling.seed == 14:
            raise RuntimeError("its sender is broken")
        return len(caller.words) >= caller.stays

    def begin(caller: Caller) -> Generation | None:
        if caller.stays == 0:
            caller.ended.append(None)
            return None
        if caller.sampling.seed == 13:
            raise ValueError("unlucky")
        return Generation(model.tokenizer, caller.prompt, caller.sampling)

    batch_type, together_type = backend
    advancing = together_type(
        batch_type(model.step, model.shape, CONTEXT),
        limit,
        CONTEXT,
        begin,
        is_left,
        lambda caller, word: caller.words.append(word),
        lambda caller, failure: caller.ended.append(failure),
    )
    waiting = sorted(callers, key=lambda caller: caller.arrives)
    time = 0
    while not all(caller.ended for caller in callers):
        while waiting and (
            waiting[0].arrives <= time or all(c.ended for c in callers if c not in waiting)
        ):
            advancing.put(waiting.pop(0))
        advancing.advance()
        time += 1


def same_as_alone(model: Model, caller: Caller) -> None:
    alone = model.alone(caller.prompt, caller.sampling)[: caller.stays]
    assert [word.token for word in caller.words] == [word.token for word in alone]
    for one, other in zip(caller.words, alone, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=BUDGET)


CALLERS = st.builds(
    Caller,
    prompt=st.lists(st.integers(0, 2000), max_size=30),
    sampling=st.builds(
        Sampling,
        max_tokens=st.integers(1, 20),
        temperature=st.sampled_from([0.0, 0.8, 1.0]),
        top_k=st.sampled_from([0, 5]),
        seed=st.integers(0, 12),
    ),
    arrives=st.integers(0, 25),
    stays=st.sampled_from([0, 1, 7, 1000]),
)


@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,  # words are compared: another machine's rounding aside, always the same draws
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(callers=st.lists(CALLERS, min_size=1, max_size=7), limit=st.integers(1, 5))
def test_whoever_joins_and_leaves_each_stream_is_as_alone(
    backend: Any, model: Model, callers: list[Caller], limit: int
) -> None:
    model.rows.clear()
    together(backend, model, callers, limit)
    assert max(model.rows, default=0) <= limit
    for caller in callers:
        assert caller.ended == [None]
        same_as_alone(model, caller)


def test_what_is_wrong_with_one_stream_ends_that_one_only(backend: Any, model: Model) -> None:
    callers = [Caller([5, 6], Sampling(max_tokens=9, seed=seed)) for seed in (1, 13, 2)]
    together(backend, model, callers, limit=3)
    assert [str(one.ended[0]) for one in callers] == ["None", "unlucky", "None"]
    assert max(model.rows[-3:]) == 2
    for caller in (callers[0], callers[2]):
        same_as_alone(model, caller)


def test_a_stream_whose_reader_cannot_be_asked_ends_alone(backend: Any, model: Model) -> None:
    callers = [Caller([5, 6], Sampling(max_tokens=9, seed=seed)) for seed in (1, 14, 2)]
    together(backend, model, callers, limit=3)
    assert [str(one.ended[0]) for one in callers] == ["None", "its sender is broken", "None"]
    for caller in (callers[0], callers[2]):
        same_as_alone(model, caller)


@pytest.mark.parametrize("method", ["read", "keep"])
def test_a_run_that_fails_ends_those_in_it_and_the_next_stream_is_answered(
    backend: Any, model: Model, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    batch_type, _ = backend
    works = getattr(batch_type, method)
    broken = iter([MemoryError("no memory")])

    def fail_once(self: Any, rows: Any) -> Any:
        for error in broken:
            raise error
        return works(self, rows)

    monkeypatch.setattr(batch_type, method, fail_once)
    callers = [Caller([5], Sampling(max_tokens=4, seed=1), arrives=at) for at in (0, 99)]
    together(backend, model, callers, limit=2)
    assert str(callers[0].ended[0]) == "no memory"
    assert callers[1].ended == [None]
    same_as_alone(model, callers[1])


def test_texts_that_arrive_together_are_read_in_one_run(backend: Any, model: Model) -> None:
    callers = [Caller([5] * length, Sampling(max_tokens=3, seed=1)) for length in (2, 2, 3, 1)]
    model.rows.clear()
    together(backend, model, callers, limit=4)
    # Texts of three tokens, `<eos>` among them: three of up to four fill a window of twelve.
    assert model.rows[:2] == [3, 3]
    assert model.rows[2] == 1
    for caller in callers:
        same_as_alone(model, caller)
