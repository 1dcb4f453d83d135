"""Where there is no GPU, Triton kernels run in Triton's interpreter.

Triton decides that when it is first imported, by whoever imports it, so it is said here.
"""

from __future__ import annotations

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
