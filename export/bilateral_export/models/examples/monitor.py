"""A model with two inputs and two outputs: a recording and a record, a risk and a curve."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilateral_export import BilateralAttention, ModelDefinition, TensorSpec

CHANNELS, FEATURES, LONGEST, DIM = 4, 6, 64, 32


class Monitor(nn.Module):
    """A recording of any length and a patient's record in; a risk and its course over time out."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.Linear(CHANNELS, DIM)
        self.record = nn.Linear(FEATURES, DIM)
        # The record is a token without a time, in front of those of the recording.
        self.attention = BilateralAttention(
            DIM,
            num_heads=4,
            qkv_bias=True,
            range_kernel="gaussian",
            positions=torch.arange(LONGEST + 1)[:, None].float(),
            bandwidth=(1.0, 8.0),
            prefix=1,
        )
        self.norm = nn.LayerNorm(DIM)
        self.risk = nn.Linear(DIM, 2)
        self.course = nn.Linear(DIM, 1)

    def forward(self, signal: Tensor, record: Tensor) -> dict[str, Tensor]:
        """Return the risk `[B, 2]` and its course `[B, T]`."""
        x = torch.cat([self.record(record).unsqueeze(1), self.signal(signal)], dim=1)
        x = self.norm(x + self.attention(x))
        return {"risk": self.risk(x[:, 0]), "course": self.course(x[:, 1:]).squeeze(-1)}


def build() -> ModelDefinition:
    """Return the model for recordings of 4 to 64 samples."""
    return ModelDefinition(
        module=Monitor(),
        inputs=[
            TensorSpec("signal", "float32", ("batch", "time", CHANNELS)),
            TensorSpec("record", "float32", ("batch", FEATURES)),
        ],
        sizes={"time": (4, LONGEST)},
        values={"record": (0.0, 1.0)},
    )
