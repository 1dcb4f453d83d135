"""`bilateral up` and `bilateral down`, and what `up` prints, pasted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tests.builders.homes import Sizes, huggingface_config, huggingface_state
from tests.cli.conftest import CHECKPOINTS, DIGITS, Bilateral
from tests.serving.server.live_processes import free_ports


def hugging_face_folder(path: Path) -> Path:
    """A small ViT without a head, as `save_pretrained` of transformers 4 writes it."""
    sizes = Sizes()
    path.mkdir()
    save_file(huggingface_state("vit", 4, sizes, head=""), path / "model.safetensors")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (path / "config.json").write_text(json.dumps(huggingface_config("vit", sizes)))
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.mark.parametrize("source", ["digits", pytest.param("hugging face", marks=pytest.mark.slow)])
def test_what_up_prints_works_when_it_is_pasted_until_down(
    bilateral: Bilateral, tmp_path: Path, source: str
) -> None:
    features = source != "digits"
    checkpoint = hugging_face_folder(tmp_path / "vit") if features else DIGITS
    grpc, http = free_ports(2)
    places = ["--repository", tmp_path / "models", "--output", tmp_path / "out"]
    ports = ["--grpc-port", grpc, "--http-port", http, "--metrics-port", 0]
    example = ["--example", CHECKPOINTS / "digits" / "3-0.png"]
    command = ["up", checkpoint, "--name", "model", *places, *ports, *example]
    with subprocess.Popen(
        [sys.executable, "-m", "bilateral_cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            lines = []
            while not (lines and lines[-1].startswith("curl")):
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                lines.append(line)
            begin = lines.index("In Python:\n") + 2
            python, curl = "".join(lines[begin : begin + 3]), lines[-1]
            assert lines[begin + 3].isspace()
            assert [line for line in lines if line.startswith("Ready after")]
            assert not [line for line in lines if "FAIL" in line]

            pasted = subprocess.run(
                [sys.executable, "-"], input=python, text=True, capture_output=True, check=True
            )
            if features:
                assert re.match(r"\[\[ ?-?\d", pasted.stdout)
            else:
                assert "label='3'" in pasted.stdout.partition("),")[0]
            if shutil.which("curl"):
                over_http = subprocess.run(
                    ["bash", "-c", curl], text=True, capture_output=True, check=True
                )
                outputs = {one["name"]: one for one in json.loads(over_http.stdout)["outputs"]}
                assert ("features" in outputs) == features
                assert features or np.argmax(outputs["logits"]["data"]) == 3
                assert features or outputs["labels"]["data"][0] == "3"

            stopped = bilateral("down", "--grpc-port", grpc)
            assert (stopped.code, stopped.out) == (0, f"Stopped the server on port {grpc}.\n")
            assert process.wait(60) == 0
        finally:
            process.terminate()
    again = bilateral("down", "--grpc-port", grpc)
    assert again.code == 2
    assert "no server of this user" in again.err


def test_up_refuses_what_is_not_a_checkpoint_in_one_line(
    bilateral: Bilateral, tmp_path: Path
) -> None:
    places = ("--repository", tmp_path / "models", "--output", tmp_path / "out")
    outcome = bilateral("up", tmp_path / "none.safetensors", *places)
    assert outcome.code == 2
    assert "does not exist" in outcome.err
    assert not list(tmp_path.iterdir())
