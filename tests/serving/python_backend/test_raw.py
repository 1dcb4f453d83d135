"""Models that take files as they are: every request by itself, the client's pixels, and curl."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from tests.builders import tiny_models as models
from tests.serving.server.live_processes import free_ports

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import SegmentationPreprocessing
from bilateral_serving import raw, repository
from bilateral_serving.client import Client
from bilateral_serving.client.inputs.files import prepare
from bilateral_serving.client.inputs.images import read_image
from bilateral_serving.client.inputs.segmentation import cut, stitch
from bilateral_serving.config import Settings
from bilateral_serving.python_backend import stand_in
from bilateral_serving.repository import dry_run
from bilateral_serving.repository.entries import existing_config
from bilateral_serving.server import RunningServer, ServerOptions, running

RAW = Settings(raw=True, threads=1, max_queue_delay_us=50_000)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
SEGMENTATION = SegmentationPreprocessing(
    window=32,
    stride=16,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    palette=((0, 0, 0), (255, 0, 0)),
)


def saved(image: Image.Image, form: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **how)
    return stream.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    return saved(PICTURE, "JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG of 10 gigapixels in a hundred bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


GREY = PICTURE.convert("L")
GOOD = {
    "JPEG": saved(PICTURE, "JPEG"),
    "PNG": saved(PICTURE, "PNG"),
    "WebP": saved(PICTURE, "WEBP"),
    "BMP": saved(PICTURE, "BMP"),
    "TIFF": saved(PICTURE, "TIFF"),
    "animated": saved(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(180)]),
    "16 bits": saved(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"),
    "CMYK": saved(PICTURE.convert("CMYK"), "JPEG"),
    "turned by its EXIF": turned(),
    "transparent": saved(PICTURE.convert("RGBA"), "PNG"),
    "data URL": b"data:image/png;base64," + base64.b64encode(saved(PICTURE, "PNG")),
}
BAD = {
    "empty": (b"", "is not an image"),
    "text": (b"not an image", "is not an image"),
    "cut off": (GOOD["PNG"][:-40], "damaged"),
    "a bomb": (bomb(), "has too many pixels"),
    "floating point": (saved(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
    "another format": (saved(PICTURE, "PPM"), "is not an image"),
    "huge": (bytes((64 << 20) + 1), "more than 64 MiB"),
    "a broken data URL": (b"data:image/png;base64,@@", "data URL"),
}
Ask = Callable[[list[dict[str, Any]]], list[Any]]


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """The `execute` of model.py, opened as in a dry run."""
    folder = tmp_path_factory.mktemp("raw")
    repository.add(
        "quadrants", models.quadrants(folder / "q.onnx"), folder / "models", settings=RAW
    )
    directory = folder / "models" / "quadrants"
    config = existing_config(directory)
    assert config is not None
    before = (sys.path.copy(), sys.dont_write_bytecode, sys.pycache_prefix, Image.MAX_IMAGE_PIXELS)
    task = {
        "directory": directory / "1",
        "code": directory / "1" / "model.py",
        "config": dry_run._as_server_sees(config),
    }
    outputs = [tensor.name for tensor in config.output]
    with ThreadPoolExecutor(1) as pool:  # the session makes subnormals zero in its thread
        model = pool.submit(stand_in._open, task).result()

        def ask(requests: list[dict[str, Any]]) -> list[Any]:
            made = [stand_in._Request(one, outputs) for one in requests]
            answers: list[Any] = pool.submit(model.execute, made).result()
            return answers

        yield ask
    sys.path[:], sys.dont_write_bytecode, sys.pycache_prefix, Image.MAX_IMAGE_PIXELS = before
    for name in ("triton_python_backend_utils", "bilateral_serving.python_backend.raw"):
        sys.modules.pop(name, None)


def file(*contents: bytes) -> dict[str, Any]:
    array = np.empty((len(contents), 1), dtype=object)
    array[:, 0] = contents
    return {raw.INPUT: array}


def plain(response: Any) -> Any:
    """A response as something to compare: its error, or its outputs."""
    if response.error is not None:
        return response.error
    return {
        tensor.name: np.round(tensor.array.astype(np.float64), 4).tolist()
        if tensor.array.dtype.kind == "f"
        else tensor.array.tolist()
        for tensor in response.tensors
    }


one_file = st.sampled_from([*GOOD.values(), *(content for content, _ in BAD.values())])
damaged = st.builds(
    lambda content, at, byte: content[: at % len(content)] + bytes([byte]) + content[at:],
    st.sampled_from(list(GOOD.values())),
    st.integers(0, 10_000),
    st.integers(0, 255),
)
pixels = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4).map(
    lambda four: {"pixel_values": np.array(four, np.float32).reshape(1, 1, 2, 2)}
)
requests = st.one_of(
    st.lists(st.one_of(one_file, damaged, st.binary(max_size=40)), min_size=1, max_size=3).map(
        lambda contents: file(*contents)
    ),
    pixels,
    st.just({}),
    pixels.map(lambda tensors: tensors | file(GOOD["PNG"])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=6))
def test_a_request_is_answered_as_if_it_were_alone(
    execute: Ask, together: list[dict[str, Any]]
) -> None:
    assert [plain(one) for one in execute(together)] == [
        plain(execute([request])[0]) for request in together
    ]


@pytest.mark.parametrize("kind", GOOD)
def test_a_file_is_answered_as_the_client_would_prepare_it(execute: Ask, kind: str) -> None:
    content = GOOD[kind if kind != "data URL" else "PNG"]
    tensors = {"pixel_values": prepare([content], models.PREPROCESSING, "quadrants")}
    of_file, of_tensors = map(plain, execute([file(GOOD[kind]), tensors]))
    assert of_file == of_tensors
    assert set(of_file) == {"logits", "labels", "probabilities", "indices"}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_a_picture_is_refused_in_one_line(execute: Ask, kind: str) -> None:
    content, reason = BAD[kind]
    (response,) = execute([file(content)])
    assert reason in response.error
    assert "\n" not in response.error


def test_of_several_files_the_bad_one_is_named(execute: Ask) -> None:
    (response,) = execute([file(GOOD["PNG"], b"x")])
    assert "file 2 of 2: the image is not an image" in response.error


def segmenter(path: Path) -> Path:
    """Class 1 where red is above the middle."""
    zero = np.zeros(1, np.float32)
    return models.save(
        path,
        [
            helper.make_node("Gather", ["pixels", "first"], ["red"], axis=1),
            helper.make_node("Greater", ["red", "zero"], ["bright"]),
            helper.make_node("Cast", ["bright"], ["classes"], to=TensorProto.UINT8),
        ],
        {"pixels": (TensorProto.FLOAT, ["batch", 3, 32, 32])},
        {"classes": (TensorProto.UINT8, ["batch", 32, 32])},
        {"zero": zero, "first": np.int64(0)},
        models.metadata(family="segmenter", labels=("dark", "bright"), preprocessing=SEGMENTATION),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("raw_served")
    for name, model in (
        ("quadrants", models.quadrants(root / "q.onnx")),
        ("features", models.features(root / "f.onnx")),
        ("segmenter", segmenter(root / "s.onnx")),
        ("words", models.words(root / "w.onnx")),
    ):
        repository.add(name, model, root / "models", settings=RAW)
    grpc, http = free_ports(2)
    options = ServerOptions(root / "models", grpc_port=grpc, http_port=http, metrics_port=None)
    with running(options) as ready:
        yield ready


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url, timeout_s=120) as connected:
        yield connected


def test_the_server_sees_the_pixels_that_the_client_would_send(client: Client) -> None:
    files = [content for kind, content in GOOD.items() if kind != "data URL"]
    seen = client.features("features", files)  # its features are its pixels
    wanted = prepare(files, models.PREPROCESSING, "features")
    np.testing.assert_array_equal(seen, wanted.reshape(len(files), -1))


def test_neighbours_of_a_damaged_file_are_answered(client: Client) -> None:
    def ask(content: bytes) -> list[Any] | str:
        try:
            return client.infer("quadrants", file(content), outputs=["labels"])["labels"].tolist()
        except UserError as error:
            return str(error)

    mixed = [GOOD["PNG"], BAD["cut off"][0], GOOD["JPEG"], bomb(), GOOD["turned by its EXIF"]] * 3
    with ThreadPoolExecutor(len(mixed)) as pool:
        together = list(pool.map(ask, mixed))
    assert together == [ask(content) for content in mixed]
    assert [isinstance(answer, str) for answer in together] == [False, True, False, True, False] * 3


def test_the_client_sends_files_and_takes_tensors_as_before(client: Client, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(GOOD["PNG"])
    (tmp_path / "bad.png").write_bytes(GOOD["PNG"][:-40])
    (best, *_), _ = client.classify("quadrants", [tmp_path / "good.png"] * 2, k=2)
    tensors = {"pixel_values": prepare([GOOD["PNG"]], models.PREPROCESSING, "quadrants")}
    logits = client.infer("quadrants", tensors)["logits"]
    assert models.QUADRANTS[int(logits.argmax())] == best.label
    with pytest.raises(UserError, match=r"bad\.png is damaged"):
        client.classify("quadrants", [tmp_path / "good.png", tmp_path / "bad.png"])


def test_a_segmenter_gives_a_mask_of_the_size_of_the_image(client: Client) -> None:
    picture = PICTURE.resize((75, 50))
    content = saved(picture, "PNG")
    (classes,) = client.segment("segmenter", [content])
    windows = cut(read_image(content), SEGMENTATION)
    wanted = stitch((windows.pixels[:, 0] > 0).astype(np.uint8), windows)
    np.testing.assert_array_equal(classes, wanted)
    mask = client.infer("segmenter", file(content), outputs=["mask"])["mask"].item()
    assert Image.open(io.BytesIO(mask)).getpalette()[3:6] == [255, 0, 0]  # type: ignore[index]


def test_a_language_model_gives_the_likelihood_of_each_word(client: Client) -> None:
    answer = client.infer("words", file(b"word word"), outputs=["words", "log_likelihood"])
    assert answer["words"].tolist() == [[b"word", b" word"]]
    assert answer["log_likelihood"].shape == (1, 2)
    with pytest.raises(UserError, match="is not UTF-8"):
        client.infer("words", file(b"\xff"), outputs=["words"])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("model", ["quadrants", "segmenter"])
def test_curl_sends_a_picture_in_one_line(
    server: RunningServer, client: Client, tmp_path: Path, model: str
) -> None:
    picture = tmp_path / "photo.jpg"
    picture.write_bytes(GOOD["JPEG"])
    command = next(
        line
        for line in (Path(__file__).parents[3] / "serving/README.md").read_text().splitlines()
        if line.startswith("(printf") and "curl" in line
    )
    for name, here in {"photo.jpg": str(picture), "MODEL": model}.items():
        command = command.replace(name, here)
    command = command.replace("localhost:8000", str(server.http_url))
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    outputs = {one["name"]: one["data"] for one in json.loads(answer.stdout)["outputs"]}
    if model == "segmenter":
        mask = base64.b64decode(outputs["mask"][0].removeprefix("data:image/png;base64,"))
        (wanted,) = client.segment(model, [picture])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), wanted)
    else:
        (wanted,) = client.classify(model, [picture], k=3)
        assert outputs["labels"] == [one.label for one in wanted]


def test_what_cannot_take_files_is_not_added_as_raw(tmp_path: Path) -> None:
    for model, reason in (
        (models.sum_and_product(tmp_path / "a.onnx"), "does not say how a file"),
        (models.quadrants(tmp_path / "b.onnx", batch=1), "needs batches"),
    ):
        with pytest.raises(UserError, match=reason):
            repository.add("x", model, tmp_path / "models", settings=Settings(raw=True))
