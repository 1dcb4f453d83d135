"""Sequence classifier, language model and segmenter, from checkpoint to answers over gRPC."""

from __future__ import annotations

import asyncio
import io
import math
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image
from tests.builders.exported import exported
from tests.serving.server.live_processes import free_ports
from torch import nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.datasets.ade20k import LABELS, PALETTE
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.registry import build
from bilateral_export.models.segmenter import SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifierConfig
from bilateral_export.preprocessing import (
    BytesPreprocessing,
    PixelsPreprocessing,
    Preprocessing,
    SegmentationPreprocessing,
    TextPreprocessing,
)
from bilateral_export.tasks import listops, pathfinder
from bilateral_export.text import Reader, Sampling, Tokenizer, generate, perplexity, score
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.client.aio import AsyncClient
from bilateral_serving.client.inputs.segmentation import cut, stitch
from bilateral_serving.config import Settings
from bilateral_serving.server import ServerOptions, running

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"
GAUSSIAN = AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian")
SMALL = {"dim": 16, "depth": 1, "hidden": 32, "attention": GAUSSIAN}
PIXELS = SequenceClassifierConfig(vocabulary=256, length=1024, grid=(32, 32), **SMALL)
PAIRS = SequenceClassifierConfig(vocabulary=257, length=64, documents=2, **SMALL)
WINDOWS = SegmenterConfig(
    image_size=32, patch_size=8, dim=24, depth=1, heads=3, num_classes=6, attention=GAUSSIAN
)
PREPROCESSING: dict[str, tuple[FamilyConfig, Preprocessing]] = {
    "pathfinder": (PIXELS, PixelsPreprocessing(height=32, width=32)),
    "retrieval": (PAIRS, BytesPreprocessing(length=64, documents=2)),
    "segmenter": (
        WINDOWS,
        SegmentationPreprocessing(
            window=32, stride=20, mean=(0.5,) * 3, std=(0.2,) * 3, palette=PALETTE[:6]
        ),
    ),
}
Models = dict[str, Checkpoint]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One word at a time is too little work to share: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The two trained checkpoints, and small random ones of the other kinds of input."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {
        "listops": load_checkpoint(CHECKPOINTS / "listops_bilateral.safetensors"),
        "pydoc": load_checkpoint(CHECKPOINTS / "pydoc_bilateral.safetensors"),
    }
    for name, (config, how) in PREPROCESSING.items():
        torch.manual_seed(1)
        model = build(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        labels = LABELS[:6] if name == "segmenter" else ("no", "yes")
        card = CheckpointCard(name=name, model=config, preprocessing=how, labels=labels)
        save_checkpoint(root / f"{name}.safetensors", model.state_dict(), card)
        made[name] = load_checkpoint(root / f"{name}.safetensors")
    return made


@pytest.fixture(scope="module")
def served(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of all of them, the language model as tensors and as a stream of words."""
    root = tmp_path_factory.mktemp("families")
    one = Settings(threads=1, max_batch_size=4)
    for name, checkpoint in models.items():
        if name in PREPROCESSING:
            path = export_onnx(checkpoint, root / f"{name}.onnx").path
        else:
            path = exported(f"{name}_bilateral", tmp_path_factory)
        repository.add(name, path, root / "models", settings=one)
    stream = Settings(threads=1, stream=True)
    words = exported("pydoc_bilateral", tmp_path_factory)
    repository.add("pydoc-words", words, root / "models", settings=stream)
    return root / "models"


def server_options(repository_root: Path, *names: str) -> ServerOptions:
    (grpc,) = free_ports(1)
    return ServerOptions(
        repository_root, names, grpc_port=grpc, http_port=None, metrics_port=None, stop_timeout_s=60
    )


@pytest.fixture(scope="module")
def url(served: Path) -> Iterator[str]:
    with running(server_options(served)) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_s=120) as connected:
        yield connected


def probabilities(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).softmax(-1).numpy()  # type: ignore[no-any-return]


def test_the_trained_listops_model_is_far_above_chance_and_served_equal_to_torch(
    models: Models, client: Client
) -> None:
    rows = (CHECKPOINTS / "listops_heldout.tsv").read_text().splitlines()
    expressions, values = zip(*(row.split("\t") for row in rows), strict=True)
    answers = client.classify("listops", [text.encode() for text in expressions], k=10)
    model = models["listops"].build_model()
    for text, answer in zip(expressions, answers, strict=True):
        wanted = probabilities(model, listops.encode(listops.parse(text))[None])[0]
        got = {prediction.index: prediction.probability for prediction in answer}
        np.testing.assert_allclose([got[i] for i in range(10)], wanted, atol=1e-5)
    right = sum(answer[0].label == value for answer, value in zip(answers, values, strict=True))
    assert right / len(values) > 0.35  # chance is 0.1; these 64 are longer than most
    assert models["listops"].card.training["heldout_accuracy"] > 0.5


def test_pixels_are_tokens(models: Models, client: Client) -> None:
    random = np.random.default_rng(0)
    image, _ = pathfinder.generate(pathfinder.PathfinderConfig(), random)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    (answer,) = client.classify("pathfinder", [buffer.getvalue()])
    tokens = image.reshape(1, -1).astype(np.int64)
    wanted = probabilities(models["pathfinder"].build_model(), tokens)[0]
    for prediction in answer:
        assert prediction.probability == pytest.approx(wanted[prediction.index], abs=1e-5)


def test_documents_go_in_pairs_of_any_length(models: Models, client: Client) -> None:
    texts = [b"a short one", b"another, that is longer", "für".encode(), b"x" * 100]
    answers = client.classify("retrieval", texts)
    model = models["retrieval"].build_model()
    for pair, answer in zip((texts[:2], texts[2:]), answers, strict=True):
        tokens = np.zeros((1, 2, 64), dtype=np.int64)
        for row, text in zip(tokens[0], pair, strict=True):
            row[: len(text)] = np.frombuffer(text[:64], np.uint8).astype(np.int64) + 1
        wanted = probabilities(model, tokens)[0]
        assert answer[0].probability == pytest.approx(wanted.max(), abs=1e-5)
    with pytest.raises(UserError, match="compares two documents and was given 3"):
        client.classify("retrieval", texts[:3])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[MAX 1 x ]", "symbol 3: 'x'"),
        (b"", "the expression is empty"),
        (b"1 " * 200, "has 200 symbols"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[MAX 1 [MIN 2 3 ]", "not one closed list"),
        (b" \n", "not one closed list"),
    ],
)
def test_what_is_no_expression_is_refused_before_it_is_sent(
    client: Client, content: bytes, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        client.classify("listops", [content])


def torch_reader(checkpoint: Checkpoint, use_cache: bool = True) -> Reader:
    model = checkpoint.build_model()
    config: Any = model.config

    def step(*arrays: Any) -> Any:
        with torch.no_grad():
            return tuple(result.numpy() for result in model(*map(torch.from_numpy, arrays)))

    shape = (1, config.depth, config.heads, 0, config.dim // config.heads)
    return Reader(step, shape, config.context, use_cache)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    how = checkpoint.card.preprocessing
    assert isinstance(how, TextPreprocessing)
    return Tokenizer(how.vocabulary, how.split)


def test_a_served_score_is_torchs_perplexity_on_the_held_out_text(
    models: Models, client: Client
) -> None:
    text = (CHECKPOINTS / "pydoc_heldout.txt").read_text()
    tokenizer = tokenizer_of(models["pydoc"])
    tokens = tokenizer.encode(text)
    wanted = score(torch_reader(models["pydoc"]), tokens, tokenizer.end)
    served = client.score("pydoc-words", text)
    assert [word.token for word in served.words] == tokens
    np.testing.assert_allclose([word.log_likelihood for word in served.words], wanted, atol=1e-3)
    assert served.perplexity == pytest.approx(perplexity(wanted), rel=1e-4)
    # What word frequencies alone reach is more than twice as much.
    assert served.perplexity < models["pydoc"].card.training["unigram_perplexity"] / 2
    assert "".join(word.text for word in served.words) == tokenizer.decode(tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_served_generation_equals_torchs_without_a_cache_token_for_token(
    models: Models, client: Client, temperature: float
) -> None:
    """150 words are more than the context of 128: the window moves on the way."""
    tokenizer = tokenizer_of(models["pydoc"])
    options: dict[str, Any] = {
        "max_tokens": 150,
        "temperature": temperature,
        "top_k": 40,
        "top_p": 0.95,
        "seed": 11,
    }
    prompt = "The object is"
    served = list(client.generate("pydoc-words", prompt, **options))
    reader = torch_reader(models["pydoc"], use_cache=False)
    plain = list(generate(reader, tokenizer, tokenizer.encode(prompt), Sampling(**options)))
    assert [word.token for word in served] == [word.token for word in plain]
    assert [word.text for word in served] == [word.text for word in plain]


def test_words_arrive_one_by_one_and_a_closed_stream_frees_the_server(client: Client) -> None:
    stream = client.generate("pydoc-words", "A", max_tokens=100_000)
    first = [next(stream) for _ in range(3)]
    stream.close()
    again = list(client.generate("pydoc-words", "A", max_tokens=3))
    assert [word.token for word in again] == [word.token for word in first]


def test_streams_left_early_neither_kill_the_server_nor_keep_it_from_stopping(
    served: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More of them at once than a model answers."""
    log: list[str] = []

    def read(number: int) -> None:
        words = client.generate("pydoc-words", "A", max_tokens=20 if number % 2 else 100_000)
        for _ in range(number % 20):
            next(words)
        words.close()

    async def read_async(connected: AsyncClient, number: int) -> None:
        async def read() -> None:
            async for _ in connected.generate("pydoc-words", "A", max_tokens=100_000):
                pass

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(), 0.02 * number)

    async def read_together() -> None:
        async with AsyncClient(server.url, timeout_s=120) as connected:
            await asyncio.gather(*(read_async(connected, number) for number in range(20)))

    started = running(
        server_options(served, "pydoc-words"), on_log=lambda line: log.append(line.text)
    )
    with started as server, Client(server.url, timeout_s=120) as client:
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(read, range(40)))
        asyncio.run(read_together())
        with pytest.raises(UserError, match="no word"):
            client.score("pydoc-words", "")
    assert any("unloading models" in text for text in log)
    assert not any("timeout expired" in text for text in log)
    assert not caplog.records  # no stream had to be cancelled


def test_a_foreign_request_without_a_text_is_told_so(url: str, client: Client) -> None:
    seed = triton.InferInput("seed", [1], "INT64")
    seed.set_data_from_numpy(np.int64([1]))
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with triton.InferenceServerClient(url) as foreign:
        foreign.start_stream(lambda result, error: answers.put(error or result))
        foreign.async_stream_infer("pydoc-words", [seed])
        assert "one 'text', and this one 0" in str(answers.get(timeout=60))
    assert len(list(client.generate("pydoc-words", "A", max_tokens=3))) == 3


def test_a_stream_has_one_instance(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(UserError, match="served by one instance, not 2"):
        repository.add(
            "words",
            exported("pydoc_bilateral", tmp_path_factory),
            tmp_path,
            settings=Settings(stream=True, instances=2),
        )
    assert list(tmp_path.iterdir()) == []


def test_streams_of_several_clients_do_not_mix(client: Client) -> None:
    alone = {
        seed: [w.token for w in client.generate("pydoc-words", "A", max_tokens=30, seed=seed)]
        for seed in range(3)
    }
    together: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        words = client.generate("pydoc-words", "A", max_tokens=30, seed=number % 3)
        together[number] = [word.token for word in words]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {number: alone[number % 3] for number in range(9)}


def test_generation_stops_at_a_stop_text(client: Client) -> None:
    words = list(client.generate("pydoc-words", "The", max_tokens=400, stop=["."], seed=2))
    assert "." in words[-1].text
    assert not any("." in word.text for word in words[:-1])


def test_the_asyncio_client_streams_the_same_words(url: str, client: Client) -> None:
    async def ask() -> tuple[list[int], float]:
        async with AsyncClient(url, timeout_s=120) as connected:
            stream = connected.generate("pydoc-words", "The class", max_tokens=20, seed=4)
            tokens = [word.token async for word in stream]
            return tokens, (await connected.score("pydoc-words", "The class")).perplexity

    async def ask_too_long() -> None:
        async with AsyncClient(url, timeout_s=0.3) as connected:
            async for _ in connected.generate("pydoc-words", "The", max_tokens=100_000):
                pass

    tokens, found = asyncio.run(ask())
    with pytest.raises(UserError, match=r"within 0\.3 s"):
        asyncio.run(ask_too_long())
    wanted = client.generate("pydoc-words", "The class", max_tokens=20, seed=4)
    assert tokens == [word.token for word in wanted]
    assert found == pytest.approx(client.score("pydoc-words", "The class").perplexity)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("pydoc-words", {"top_p": 2.0}, "top_p 2.0"),
        ("pydoc-words", {"temperature": math.inf}, "temperature inf"),
        ("pydoc-words", {"max_tokens": 0}, "max_tokens 0"),
        ("pydoc-words", {"seed": 2**63}, "seed 9223372036854775808"),
        ("pydoc-words", {"stop": ("\udcff",)}, "stop: character 0 is not UTF-8"),
        ("pydoc", {}, "not served as a stream of words"),
        ("nobody", {}, "is not served"),
        ("pydoc-words", {"max_tokens": 100_000, "timeout_s": 0.3}, "within 0.3 s"),
    ],
)
def test_what_cannot_be_generated_is_one_clear_line(
    client: Client, model: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        list(client.generate(model, "The", **options))


def test_a_text_that_is_not_utf8_is_refused(client: Client) -> None:
    text = os.fsdecode(b"The \xff")  # as Python reads a command line
    for ask in (client.generate, client.score):
        with pytest.raises(UserError, match="text: character 4 is not UTF-8"):
            ask("pydoc-words", text)
        with pytest.raises(UserError, match="the model's name: character 4 is not UTF-8"):
            ask(text, "The")


def test_an_empty_text_has_no_score(client: Client) -> None:
    with pytest.raises(UserError, match="no word"):
        client.score("pydoc-words", "")


def test_the_tensors_of_a_language_model_are_served_too(models: Models, client: Client) -> None:
    model: Any = models["pydoc"].build_model()
    for past in (0, 9):
        arrays = model.example(2, np.random.default_rng(0), length=5, past=past)
        got = client.infer("pydoc", arrays)
        with torch.no_grad():
            wanted = model(*(torch.from_numpy(array) for array in arrays.values()))
        for name, tensor in zip(got, wanted, strict=True):
            np.testing.assert_allclose(got[name], tensor.numpy(), atol=1e-3)


def test_a_large_image_is_cut_into_windows_and_put_together_again(
    models: Models, client: Client
) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (75, 50, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    (classes,) = client.segment("segmenter", [buffer.getvalue()])
    assert (classes.shape, classes.dtype) == ((75, 50), np.uint8)
    how = models["segmenter"].card.preprocessing
    assert isinstance(how, SegmentationPreprocessing)
    windows = cut(image, how)
    with torch.no_grad():
        pieces = models["segmenter"].build_model()(torch.from_numpy(windows.pixels)).numpy()
    assert (classes == stitch(pieces, windows)).mean() > 0.999
    assert len(np.unique(classes)) > 1


def test_classes_cross_the_wire_as_one_byte_a_pixel(client: Client) -> None:
    (output,) = client.model_metadata("segmenter").outputs
    assert (output.dtype, output.shape[1:]) == ("uint8", (32, 32))


def test_a_model_asked_for_what_it_is_not_says_so(client: Client) -> None:
    with pytest.raises(UserError, match="is not a classifier"):
        client.classify("segmenter", [b"x"])
    with pytest.raises(UserError, match="is not a segmenter"):
        client.segment("listops", [b"x"])
