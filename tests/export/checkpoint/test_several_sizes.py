"""One file for several sizes: at each it is the static export there, lowered or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.builders.exported import shallow

from bilateral_export.artifact import read_metadata
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.checkpoint import Checkpoint
from bilateral_export.checkpoint.exported import as_exported
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.checkpoint.resolution import at_resolution
from bilateral_export.checkpoint.several_sizes import for_sizes
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import Lowering, lower, lowered_proto, read_lowering
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import random_samples
from bilateral_export.preprocessing import ImagePreprocessing, ImageSizes
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner
from bilateral_export.tensors import FEATURES

DIGITS = Path(__file__).parents[3] / "export" / "checkpoints" / "digits_bilateral.safetensors"
SIZES = [(4, 4), (24, 32)]


@pytest.fixture(scope="module")
def digits() -> Checkpoint:
    return shallow(load_checkpoint(DIGITS), 2)


@pytest.fixture(scope="module")
def several(digits: Checkpoint) -> Checkpoint:
    return for_sizes(digits, SIZES)


@pytest.fixture(scope="module")
def several_onnx(several: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(several, tmp_path_factory.mktemp("several") / "digits.onnx").path


@pytest.fixture(scope="module", params=["augmented", "mask"])
def lowered(several_onnx: Path, request: pytest.FixtureRequest) -> tuple[Path, Lowering]:
    path = several_onnx.with_suffix(f".{request.param}.onnx")
    return path, lower(several_onnx, "onnxruntime-cpu", path, form=request.param).lowering


def small(spatial_kernel: str, **changes: object) -> Checkpoint:
    config = ImageClassifierConfig(
        image_size=(16, 24),
        patch_size=4,
        dim=24,
        depth=2,
        heads=3,
        attention=AttentionConfig(spatial_kernel=spatial_kernel),
        **changes,
    )
    torch.manual_seed(0)
    card = CheckpointCard(name="model", model=config)
    return Checkpoint(Path("unused"), "0" * 64, card, build(config).state_dict())


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def static(checkpoint: Checkpoint, image: np.ndarray) -> np.ndarray:
    """The answers in FP64 of the checkpoint moved to the image's size."""
    moved = at_resolution(checkpoint, image.shape[2:]).build_model().double()
    with torch.no_grad():
        return moved(torch.from_numpy(image).double()).numpy()


def test_at_random_sizes_the_file_is_the_static_export_there(
    digits: Checkpoint, several_onnx: Path, lowered: tuple[Path, Lowering]
) -> None:
    generator = np.random.default_rng(0)
    with (
        OnnxRuntimeRunner(several_onnx) as plain,
        OpenVinoRunner(several_onnx) as vino,
        OnnxRuntimeRunner(lowered[0]) as fast,
    ):
        for _ in range(8):
            size = (2 * generator.integers(2, 13), 2 * generator.integers(2, 17))
            image = generator.standard_normal((3, 1, *size)).astype(np.float32)
            wanted = static(digits, image)
            for runner in (plain, vino, fast):
                error = difference(runner.run({"image": image})["logits"], wanted)
                assert error < 5e-6, (runner.name, size)


def test_every_attention_has_a_fast_form_after_its_gate_at_the_corners(
    lowered: tuple[Path, Lowering],
) -> None:
    path, done = lowered
    assert {f".{site.form}" for site in done.sites} == {Path(path.stem).suffix}
    assert all(site.error is not None for site in done.sites)
    for name in ("residual_stream", "push_down_gather"):
        assert done.record(name).applied, name
    assert bool(done.record("head_layout").applied) == (done.sites[0].form == "mask")


def test_the_form_is_the_one_for_the_models_own_size(several_onnx: Path) -> None:
    proto, done = lowered_proto(several_onnx, "onnxruntime-cpu")
    assert {site.form for site in done.sites} == {"mask"}
    assert sum("free_grid.distances" in node.output for node in proto.graph.node) == 1


def test_a_file_of_short_and_long_images_has_the_best_form_for_both(
    digits: Checkpoint, tmp_path: Path
) -> None:
    path = export_onnx(for_sizes(digits, [(8, 8), (44, 40)]), tmp_path / "m.onnx").path
    proto, done = lowered_proto(path, "onnxruntime-cpu")
    layers = len(done.sites)
    assert done.summary == f"{layers} x mask; from 400 tokens on {layers} x augmented"
    assert done.record("head_layout").applied
    assert read_lowering(proto) == done
    onnx.checker.check_model(proto)
    (choice,) = (node for node in proto.graph.node if node.op_type == "If")
    branches = {branch.name: branch.g for branch in choice.attribute}
    long = [node.op_type for node in branches["else_branch"].node]
    assert long.count("MultiHeadAttention") == layers
    assert not any(node.op_type == "MultiHeadAttention" for node in branches["then_branch"].node)
    with LoweredRunner(path) as runner:
        for size in ((8, 8), (38, 40), (40, 40), (42, 40), (44, 40)):
            image = np.random.default_rng(0).standard_normal((2, 1, *size)).astype(np.float32)
            got = runner.run({"image": image})["logits"]
            assert difference(got, static(digits, image)) < 5e-6, size


def test_without_positions_in_the_logits_one_form_is_best_at_every_length(tmp_path: Path) -> None:
    sizes = [(16, 24), (80, 96)]
    path = export_onnx(for_sizes(small("none"), sizes), tmp_path / "m.onnx").path
    proto, done = lowered_proto(path, "onnxruntime-cpu")
    assert done.summary == "2 x augmented"
    assert not any(node.op_type == "If" for node in proto.graph.node)


def test_parity_visits_smallest_largest_narrow_and_own_size_by_default(
    digits: Checkpoint, several: Checkpoint, several_onnx: Path
) -> None:
    samples = random_samples(several.build_model())
    shapes = {sample.arrays["image"].shape[2:] for sample in samples}
    assert shapes >= {(24, 32), (24, 4), (4, 4), (8, 8)}
    again = as_exported(digits, read_metadata(several_onnx))
    assert again.card.model == several.card.model
    report = compare(again, [Candidate(OnnxRuntimeRunner(several_onnx), "fp32")], samples)
    assert report.passed, report.rows


@pytest.mark.parametrize("kernel", ["none", "dot"])
def test_learned_positions_and_features_are_interpolated_in_the_graph(
    kernel: str, tmp_path: Path
) -> None:
    before = small(kernel, registers=1, output="tokens", num_classes=0)
    path = export_onnx(for_sizes(before, [(32, 8)]), tmp_path / "m.onnx").path
    with LoweredRunner(path) as runner:
        for size in ((16, 24), (32, 8), (24, 12)):
            image = np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)
            got = runner.run({"image": image})[FEATURES]
            assert difference(got, static(before, image)) < 5e-6, size


def test_half_precision_rounds_as_the_static_export_does(
    several: Checkpoint, tmp_path: Path
) -> None:
    path = export_onnx(several, tmp_path / "half.onnx", precision="fp16").path
    samples = random_samples(several.build_model(), items=8)
    report = compare(several, [Candidate(OnnxRuntimeRunner(path), "fp16")], samples)
    assert report.passed, report.rows


def test_interpolation_starts_where_the_positions_were_learned(digits: Checkpoint) -> None:
    once = for_sizes(at_resolution(digits, 12), SIZES)
    assert once.state["pos_embed"] is digits.state["pos_embed"]
    image = np.ones((1, 1, 24, 32), dtype=np.float32)
    with torch.no_grad():
        got = once.build_model().double()(torch.from_numpy(image).double()).numpy()
    assert difference(got, static(digits, image)) < 1e-6


def test_what_is_not_several_sizes_of_an_image_is_refused(digits: Checkpoint) -> None:
    for sizes, reason in (
        ([(5, 8)], "not a multiple of patch_size 2"),
        ([(8, 8)], "at least one other"),
    ):
        with pytest.raises(UserError, match=reason):
            for_sizes(digits, sizes)
    card = CheckpointCard(name="seg", model=SegmenterConfig(image_size=32))
    with pytest.raises(UserError, match="windows of one size"):
        for_sizes(Checkpoint(Path("unused"), "0" * 64, card, {}), SIZES)
    with pytest.raises(UserError, match="features of one grid"):
        export_onnx(for_sizes(digits, SIZES), Path("unused"), spatial_features=True)


HOW = ImagePreprocessing(
    height=224,
    width=224,
    resize=256,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    sizes=ImageSizes(multiple=16, smallest=(160, 160), largest=(512, 384)),
)


@pytest.mark.parametrize(
    ("image", "kept"),
    [((300, 300), (224, 224)), ((600, 300), (448, 224)), ((900, 300), (512, 224)),
     ((300, 600), (224, 384)), ((300, 320), (224, 240))],
)  # fmt: skip
def test_an_aspect_ratio_is_kept_as_far_as_the_sizes_go(
    image: tuple[int, int], kept: tuple[int, int]
) -> None:
    how = HOW.keeping_aspect(*image)
    assert (how.height, how.width, how.resize) == (*kept, 256)


def test_a_document_of_one_size_is_written_as_before() -> None:
    plain = HOW.model_copy(update={"sizes": None})
    assert "sizes" not in plain.model_dump_json()
    assert ImagePreprocessing.model_validate_json(HOW.model_dump_json()) == HOW
    assert HOW.at(384, 384).resize == 438
    assert HOW.sizes is not None
    assert HOW.sizes.refused(224, 384) == ""
    assert "160 to 512 x 160 to 384" in HOW.sizes.refused(224, 400)
