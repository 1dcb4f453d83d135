"""Limits of a configuration's sizes: well above every published model, and quick to refuse.

The largest published: 1,000 layers (DeepNet), width 18,432 (PaLM), 2**20 tokens of context, images
of a few thousand pixels, vocabularies below 2**20 words.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Depth = Annotated[int, Field(strict=True, gt=0, le=1024)]
Width = Annotated[int, Field(strict=True, gt=0, le=1 << 17)]
Heads = Annotated[int, Field(strict=True, gt=0, le=1024)]
Pixels = Annotated[int, Field(strict=True, gt=0, le=1 << 14)]
Tokens = Annotated[int, Field(strict=True, gt=0, le=1 << 20)]
Classes = Annotated[int, Field(strict=True, gt=0, le=1 << 20)]
Vocabulary = Annotated[int, Field(strict=True, gt=1, le=1 << 22)]
Features = Annotated[int, Field(strict=True, gt=0, le=4096)]
Ratio = Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Registers = Annotated[int, Field(strict=True, ge=0, le=1024)]
ClassesOrNone = Annotated[int, Field(strict=True, ge=0, le=1 << 20)]
