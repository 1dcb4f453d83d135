"""8-bit forms in every runtime, of features that get a head for real digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bilateral_benchmarks.experiments import digits_head
from bilateral_benchmarks.experiments.document import BenchDocument
from bilateral_benchmarks.experiments.eight_bits import measure_eight_bits
from bilateral_benchmarks.experiments.quantization import Candidate, Quantization
from bilateral_benchmarks.report.compare_reports import compare_documents
from bilateral_benchmarks.report.context import Context
from bilateral_benchmarks.report.result import KEPT
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.known import card_of
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build
from bilateral_export.preprocessing import ImagePreprocessing
from bilateral_export.runners.registry import LOWERED, RUNTIMES


def small(folder: Path, **changes: object) -> Path:
    """A ViT of one block on 16 x 16 pixels, without a head."""
    given = {"image_size": 16, "patch_size": 8, "dim": 32, "depth": 1, "heads": 2}
    config = ImageClassifierConfig.model_validate(
        given | {"num_classes": 0, "output": "cls"} | changes
    )
    torch.manual_seed(0)
    path = folder / "small.safetensors"
    how = ImagePreprocessing(height=16, width=16, resize=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    card = card_of("small", config).model_copy(update={"preprocessing": how})
    save_checkpoint(path, build(config).state_dict(), card)
    return path


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_features_get_a_head_and_are_judged_by_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits_head, "SIDE", 16)
    found = measure_eight_bits(str(small(tmp_path)), max_loss=0.2, rounds=1)
    assert [one.runtime for one in found] == [name for name in LOWERED if RUNTIMES[name].installed]
    for one in found:
        assert one.labelled
        assert one.items == 1_797 - 600 - 64
        assert one.holds
        measures = {quantity.measure for quantity in one.quantities()}
        assert measures >= {KEPT, "times float's speed"}


def test_a_head_is_fitted_to_features_alone(tmp_path: Path) -> None:
    path = small(tmp_path, output="tokens")
    with pytest.raises(UserError, match="class token"):
        digits_head.digits_classifier(load_checkpoint(path), tmp_path)


def test_a_form_that_keeps_fewer_decisions_is_worse() -> None:
    def kept(loss: float) -> BenchDocument:
        form = Candidate(
            smoothed=False,
            float_layers=0,
            changed=1,
            loss=loss,
            low=loss - 0.01,
            high=loss + 0.01,
            holds=True,
        )
        found = Quantization(
            subject="m",
            layers=1,
            items=300,
            labelled=True,
            max_loss=0.005,
            candidates=(form,),
            sensitivities=(),
            context=Context.now(),
        )
        return BenchDocument(title="t", items=(found,))

    def judgement(before: float, after: float) -> str:
        (verdict,) = compare_documents(kept(before), kept(after))
        return verdict.judgement

    assert judgement(0.0, 0.01) == "indistinguishable"
    assert judgement(0.0, 0.1) == "worse"
    assert judgement(0.1, 0.0) == "better"
