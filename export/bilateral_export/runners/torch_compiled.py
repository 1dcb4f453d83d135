"""The `torch.compile` runtime: the trained model through TorchInductor."""

from __future__ import annotations

import shutil

import torch
from torch import nn

from bilateral_export.errors import UnsupportedError
from bilateral_export.runners.torch_eager import TorchRunner


class CompiledRunner(TorchRunner):
    """Runs a checkpoint's model compiled by TorchInductor, on the CPU.

    The first call of a batch of one and the first call of a larger batch compile, which takes
    seconds to a minute each; every further size reuses the second.

    Its arguments are those of `TorchRunner`.
    """

    how = "torch.compile"

    def _open(self) -> nn.Module:
        """Wrap the model; it is compiled when it first runs.

        Raises:
            UnsupportedError: There is no C++ compiler, which TorchInductor needs on a CPU.
        """
        if not any(map(shutil.which, ("g++", "c++", "clang++"))):
            raise UnsupportedError("torch.compile needs a C++ compiler", "Install g++.")
        compiled = torch.compile(super()._open(), dynamic=True, fullgraph=True)
        assert isinstance(compiled, nn.Module)
        return compiled
