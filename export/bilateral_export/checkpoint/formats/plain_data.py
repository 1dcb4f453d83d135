"""Plain data that training scripts store beside the weights, rebuilt without running their code.

A pickle names the function that rebuilds an object. The same object has had several names: numpy 2
moved its functions, Python 3.13 its paths. Here every known name is given a stand-in of our own, so
that neither the name's module is imported nor the object's code runs, whatever its arguments.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import re
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any

import numpy as np

# Numpy's types of numbers and texts; structured and object types would hold what is not plain.
_SIMPLE_DTYPE = re.compile(r"[biufc]\d{1,2}|[SU]\d{1,4}")


class Inert:
    """What stands for an object that nobody reads: it takes any arguments and any state."""

    def __init__(self, *_arguments: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...

    def __repr__(self) -> str:
        return "an object that is not read"


class PlainText(str):
    """A class that only adds methods to text."""

    __slots__ = ()

    def __new__(cls, text: Any = "", *_arguments: Any) -> PlainText:
        """Keep a text; what is not one is empty."""
        return super().__new__(cls, text if isinstance(text, str) else "")


class PlainDtype:
    """Numpy's dtype, by its code only."""

    def __init__(self, code: Any = "", *_flags: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        """Take the byte order out of numpy's state `(version, order, ...)`."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|"):
            self.order = state[1]


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A numpy scalar as a Python number or text; None where it is neither."""
    if not isinstance(dtype, PlainDtype) or not isinstance(data, bytes):
        return None
    if not isinstance(dtype.code, str) or not _SIMPLE_DTYPE.fullmatch(dtype.code):
        return None
    return np.frombuffer(data, np.dtype(dtype.order + dtype.code), count=1)[0].item()


def _array(*_arguments: Any) -> Inert:
    return Inert()


def _path(*parts: Any) -> PurePath:
    # str() of what is not text may take for ever: a list of lists of the same list.
    return PurePath(*(part for part in parts if isinstance(part, str)))


def _dictionary(*_factory: Any) -> dict[Any, Any]:
    return {}


def _list(*_arguments: Any) -> list[Any]:
    return []


_STAND_INS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": SimpleNamespace,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _dictionary,
    "collections.deque": _list,
    "builtins.frozenset": frozenset,
    "builtins.range": range,
    "builtins.slice": slice,
    "torch.torch_version.TorchVersion": PlainText,
    "numpy.dtype": PlainDtype,
    # Read by nobody here: random states, identifiers, exact numbers, and classes that are passed to
    # a function above.
    **dict.fromkeys(("decimal.Decimal", "fractions.Fraction", "uuid.UUID"), Inert),
    **{
        f"numpy.random._pickle.__{name}_ctor": Inert
        for name in ("generator", "bit_generator", "randomstate")
    },
    **{
        f"numpy.random.{name}": Inert
        for name in ("_pcg64.PCG64", "_mt19937.MT19937", "_philox.Philox", "_sfc64.SFC64")
    },
    **{f"builtins.{name}": Inert for name in ("bool", "dict", "float", "int", "list", "str")},
    **{f"numpy.{name}": Inert for name in ("ndarray", "bool_", "float32", "float64", "int64")},
    **{f"datetime.{name}": getattr(datetime, name) for name in ("date", "datetime", "time")},
    **{f"datetime.{name}": getattr(datetime, name) for name in ("timedelta", "timezone")},
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _STAND_INS |= {f"{_module}.scalar": _scalar, f"{_module}._reconstruct": _array}
for _module in ("pathlib", "pathlib._local"):
    for _class in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath"):
        _STAND_INS[f"{_module}.{_class}"] = _path
    _STAND_INS[f"{_module}.PureWindowsPath"] = _path

# As `torch.serialization.safe_globals` takes them.
SAFE_GLOBALS: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
