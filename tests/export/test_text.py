"""Words and ids, windows over texts of any length, and drawing words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.language import LanguageModel, LanguageModelConfig
from bilateral_export.text import (
    END,
    UNKNOWN,
    Reader,
    Sampling,
    Tokenizer,
    draw,
    generate,
    perplexity,
    score,
)

TEXT = 'The "if" statement (see below) isn\'t a loop.\nIt is used for a choice.\n'
CONTEXT = 8
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One word at a time is too little work to share: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_text_survives_being_encoded_and_decoded() -> None:
    tokenizer = Tokenizer.trained("It is used, for a choice (or two).\nIt is.", least=1)
    for text in ("It is used, for a choice (or two).", "It is.\nIt is."):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_already_tokenised_text_is_cut_at_spaces_only() -> None:
    tokenizer = Tokenizer.trained(" = Title = \n a , b @-@ c <unk> \n", least=1, split="spaces")
    assert tokenizer.decode(tokenizer.encode("a , b @-@ c <unk>")) == "a , b @-@ c <unk>"
    assert tokenizer.encode("a\nb") == [
        tokenizer.encode("a")[0],
        tokenizer.end,
        tokenizer.encode("b")[0],
    ]


@pytest.mark.parametrize("split", ["words", "spaces"])
def test_a_byte_order_mark_is_no_part_of_a_text(split: str) -> None:
    tokenizer = Tokenizer.trained("\ufeffThe class", least=1, split=split)
    assert set(tokenizer.words) == {END, UNKNOWN, "The", "class"}
    assert tokenizer.encode("\ufeffThe") == tokenizer.encode("The")


def test_rare_words_become_unknown_and_frequent_ones_come_first() -> None:
    tokenizer = Tokenizer.trained("a a a b b c", least=2)
    assert tokenizer.words == (END, UNKNOWN, "a", "b")
    assert tokenizer.encode("a c b") == [2, tokenizer.unknown, 3]


@given(st.text(max_size=60))
def test_every_text_has_ids_of_the_vocabulary(text: str) -> None:
    tokenizer = Tokenizer.trained(TEXT, least=1)
    ids = tokenizer.encode(text)
    assert all(0 <= number < len(tokenizer.words) for number in ids)
    assert ids.count(tokenizer.end) >= text.count("\n")


@pytest.mark.parametrize("vocabulary", [["a", END, UNKNOWN, "a"], ["a", UNKNOWN], ["a", END]])
def test_a_vocabulary_with_a_fault_is_refused(vocabulary: list[str]) -> None:
    with pytest.raises(ValueError, match="the vocabulary has"):
        Tokenizer(vocabulary)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = LanguageModelConfig(
        vocabulary=20,
        context=CONTEXT,
        dim=16,
        depth=2,
        heads=2,
        hidden=32,
        cutoffs=(),
        attention=AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
    )
    made = LanguageModel(config).eval().double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def reader_of(model: LanguageModel, use_cache: bool = True) -> Reader:
    def step(*arrays: Array) -> tuple[Array, ...]:
        tensors = [torch.from_numpy(array) for array in arrays]
        with torch.no_grad():
            return tuple(
                tensor.numpy() for tensor in model(*tensors[:2], *map(double, tensors[2:]))
            )

    def double(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double()

    config = model.config
    shape = (1, config.depth, config.heads, 0, config.dim // config.heads)
    return Reader(step, shape, config.context, use_cache)  # type: ignore[arg-type]


TOKENIZER = Tokenizer([END, UNKNOWN, *(f"w{number}" for number in range(18))])


@settings(deadline=None, max_examples=20)
@given(
    prompt=st.lists(st.integers(0, 19), max_size=20),
    seed=st.integers(0, 100),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_generation_with_the_cache_equals_generation_without_word_for_word(
    model: LanguageModel, prompt: list[int], seed: int, temperature: float
) -> None:
    """Beyond the context too: 24 new words are three windows."""
    sampling = Sampling(max_tokens=24, temperature=temperature, seed=seed)
    with_cache, without = (
        list(generate(reader_of(model, use_cache), TOKENIZER, prompt, sampling))
        for use_cache in (True, False)
    )
    assert [word.token for word in with_cache] == [word.token for word in without]
    for one, other in zip(with_cache, without, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood)


def test_scoring_a_generated_text_gives_the_probabilities_it_was_drawn_with(
    model: LanguageModel,
) -> None:
    words = list(generate(reader_of(model), TOKENIZER, [], Sampling(max_tokens=30, seed=5)))
    scored = score(reader_of(model), [word.token for word in words], TOKENIZER.end)
    np.testing.assert_allclose(scored, [word.log_likelihood for word in words])


def test_every_word_has_at_least_half_a_context_before_it(model: LanguageModel) -> None:
    """Cutting the text off half a context before a word that starts a window changes nothing."""
    tokens = [3, 7, 1, 12, 5, 9, 2, 14, 6, 8, 11, 4]
    scored = score(reader_of(model), tokens, TOKENIZER.end)
    # The window before word 8 (counting the <eos> in front) starts again with the last 4 tokens.
    inputs = [TOKENIZER.end, *tokens[:-1]]
    again, _ = reader_of(model).read(inputs[4:12], tokens[4:12])
    np.testing.assert_allclose(again[4:], scored[8:])


def test_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary() -> None:
    assert perplexity([float(np.log(1 / 50))] * 7) == pytest.approx(50)


PROBABILITIES = np.log(np.array([0.05, 0.4, 0.3, 0.2, 0.05]))


def drawn(**options: Any) -> set[int]:
    random = np.random.default_rng(0)
    return {draw(PROBABILITIES, Sampling(**options), random) for _ in range(300)}


def test_drawing_obeys_temperature_top_k_and_top_p() -> None:
    assert drawn() == {0, 1, 2, 3, 4}
    assert drawn(temperature=0) == {1}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.5) == {1, 2}  # the word that crosses the threshold is in
    assert drawn(top_p=0.3) == {1}
    assert drawn(top_k=3, top_p=0.99) == {1, 2, 3}
    assert drawn(temperature=0.01) == {1}


def test_words_are_drawn_as_often_as_they_are_probable() -> None:
    random = np.random.default_rng(0)
    counts = np.bincount(
        [draw(PROBABILITIES, Sampling(), random) for _ in range(20_000)], minlength=5
    )
    np.testing.assert_allclose(counts / 20_000, np.exp(PROBABILITIES), atol=0.015)


def test_generation_ends_with_the_word_that_completes_a_stop_text(model: LanguageModel) -> None:
    free = list(generate(reader_of(model), TOKENIZER, [], Sampling(max_tokens=20, seed=1)))
    target = free[6].text.strip()
    first = next(i for i, _ in enumerate(free) if target in "".join(w.text for w in free[: i + 1]))
    stopped = generate(
        reader_of(model), TOKENIZER, [], Sampling(max_tokens=20, seed=1, stop=(target,))
    )
    assert list(stopped) == free[: first + 1]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_k": 2**31},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": 1e-50},  # 0 in the float32 that a server is sent
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
