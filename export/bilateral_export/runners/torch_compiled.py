"""The trained model through `torch.compile`."""

from __future__ import annotations

import shutil

import torch
from torch import nn

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UnsupportedError
from bilateral_export.runners.torch_eager import TorchRunner


class CompiledRunner(TorchRunner):
    """Runs a checkpoint's model compiled by TorchInductor, on the CPU.

    The first call of a batch of one and the first call of a larger batch compile, which takes
    seconds to a minute each; every further size reuses the second.

    Args:
        checkpoint: The trained weights.
        dtype: Of weights and activations.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(checkpoint, dtype)
        self.name = f"torch.compile {str(dtype).removeprefix('torch.')}"

    def _load(self) -> nn.Module:
        """Wrap the model; it is compiled when it first runs.

        Raises:
            UnsupportedError: There is no C++ compiler, which TorchInductor needs on a CPU.
        """
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise UnsupportedError("torch.compile needs a C++ compiler", "Install g++.")
        compiled = torch.compile(super()._load(), dynamic=True, fullgraph=True)
        assert isinstance(compiled, nn.Module)
        return compiled
