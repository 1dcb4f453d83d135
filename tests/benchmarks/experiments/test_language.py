"""Streams of words: every contender continues the same texts, and two reports can be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bilateral_benchmarks.experiments.document import BenchDocument
from bilateral_benchmarks.experiments.language import (
    EAGER,
    SERVED,
    STATIC,
    EagerRunner,
    Language,
    measure_language,
)
from bilateral_benchmarks.experiments.static_cache import StaticCacheRunner
from bilateral_benchmarks.report.compare_reports import compare_documents
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.language import LanguageModel, LanguageModelConfig

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


@pytest.fixture(scope="module")
def found() -> Language:
    return measure_language(
        "pydoc_bilateral",
        checkpoints=CHECKPOINTS,
        streams=(1, 3),
        prompt=4,
        words=5,
        rounds=2,
        classifiers=(),
    )


def test_all_contenders_are_measured_for_one_stream_and_for_several(found: Language) -> None:
    assert {(run.contender, run.streams) for run in found.runs} == {
        (name, count) for name in (SERVED, EAGER, STATIC) for count in (1, 3)
    }
    assert all(run.words_per_s > 0 and run.first_ms > 0 for run in found.runs)
    assert len(found.gains) == 2
    assert "3 streams give" in found.tables()[0].notes[0]


def test_streams_together_say_what_each_says_alone(found: Language) -> None:
    assert found.same_words == 1
    assert found.deviation < 1e-4


def test_fewer_words_a_second_fail_the_comparison_from_six_rounds_on(found: Language) -> None:
    def report(rounds: int, factor: float) -> BenchDocument:
        runs = tuple(
            run.model_copy(
                update={"words_per_s": 100 * factor, "spread": (95 * factor, 105 * factor)}
            )
            for run in found.runs
        )
        changed = found.model_copy(update={"rounds": rounds, "runs": runs})
        return BenchDocument(title="Streams", items=(changed,))

    def judged(rounds: int, factor: float) -> set[str]:
        verdicts = compare_documents(report(rounds, 1), report(rounds, factor))
        assert len(verdicts) == len(found.runs)
        return {verdict.judgement for verdict in verdicts}

    assert judged(6, 0.8) == {"slower"}
    assert judged(6, 1.25) == {"faster"}
    assert judged(6, 1.02) == {"indistinguishable"}
    assert "slower" not in judged(5, 0.8)


@pytest.mark.parametrize("kernel", ["dot", "gaussian"])
def test_the_static_cache_computes_what_eager_torch_computes(kernel: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LanguageModelConfig(
        vocabulary=50,
        context=12,
        dim=8,
        depth=2,
        heads=2,
        hidden=16,
        cutoffs=(20,),
        attention=AttentionConfig(range_kernel=kernel, spatial_kernel="gaussian"),
    )
    model = LanguageModel(config).eval()
    runners = EagerRunner(model), StaticCacheRunner(model, tmp_path, 1)
    texts = np.random.default_rng(0).integers(0, 50, (3, 12))
    for step in (slice(0, 5), slice(5, 6), slice(6, 9), slice(9, 12)):
        tokens = texts[:, step]
        one, other = (
            runner.begin(tokens) if step.start == 0 else runner.read(tokens) for runner in runners
        )
        np.testing.assert_allclose(other, one, atol=1e-5)
