"""A model of your own, for `bilateral export --model THIS_FILE:build CHECKPOINT OUT.onnx`.

Change what is marked CHANGE, then run the test at the end: `pytest THIS_FILE`.
`build` is called whenever this file is given as --model: it runs as your own code does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bilateral_export import (
    BilateralAttention,
    ModelDefinition,
    TensorSpec,
    export_onnx,
    grid_positions,
    load_checkpoint,
)

GRID, DIM, HEADS, CLASSES = 8, 64, 4, 10


# CHANGE: your module. Attention is bilateral where it is one of these:
#   BilateralAttention(...)                 a module with the signature of timm's Attention
#   scaled_dot_product_attention(...)       a function with the signature of PyTorch's
#   replace_attention(model, ...)           puts the module into a timm model you have
#   register_with_transformers()            then attn_implementation="bilateral" in Hugging Face
#   torch.ops.bilateral.attention(...)      the operator itself
# Names of what must stay float32 in fp16 and bf16: positions, log_bandwidth.
class MyModel(nn.Module):
    """An image of 32 x 32 pixels as 8 x 8 patches, one block, and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(DIM)
        self.attention = BilateralAttention(
            DIM,
            num_heads=HEADS,
            qkv_bias=True,
            range_kernel="gaussian",
            positions=grid_positions(GRID, GRID, prefix=0),
            bandwidth=(1.0, 4.0),
        )
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[B, classes]`. No `if` on values: it cannot be exported."""
        x = self.embed(image).flatten(2).transpose(1, 2)
        x = x + self.attention(self.norm(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


def build() -> ModelDefinition:
    """Return the module and what goes in. Its weights come from the checkpoint."""
    return ModelDefinition(
        module=MyModel(),
        # CHANGE: one TensorSpec per argument of forward. "batch" comes first. Another name is a
        # dynamic dimension: ("batch", "length") with sizes={"length": (1, 512)}.
        inputs=[TensorSpec("image", "float32", ("batch", 3, 4 * GRID, 4 * GRID))],
        outputs=["logits"],
        # For whole numbers, such as token ids: values={"tokens": (0, vocabulary)}.
        # Class names and preprocessing, for `bilateral infer` on files:
        # labels=["cat", "dog", ...],
        # preprocessing=ImagePreprocessing(height=32, width=32, resize=36, mean=..., std=...),
    )


def test_the_exported_file_computes_what_the_module_computes(tmp_path: Path) -> None:
    """Export fresh weights and compare; with trained ones, `bilateral parity` does it better."""
    import onnxruntime

    torch.manual_seed(0)
    definition = build()
    torch.save(definition.module.state_dict(), tmp_path / "fresh.pt")
    checkpoint = load_checkpoint(tmp_path / "fresh.pt", model=definition)
    export_onnx(checkpoint, tmp_path / "model.onnx")

    inputs = definition.draw(3, np.random.default_rng(0))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    got = session.run(None, inputs)
    with torch.inference_mode():
        wanted = definition.module.eval()(*map(torch.from_numpy, inputs.values()))
    np.testing.assert_allclose(got[0], wanted.numpy(), rtol=1e-4, atol=1e-5)
