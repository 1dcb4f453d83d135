"""The cases of a document, asked of a running server."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving.client import Client
from bilateral_serving.declared.document import Case, Declared


@dataclass(frozen=True)
class Verdict:
    """One case over one address.

    Attributes:
        model: The model.
        case: Its number, from 1.
        url: Where it was asked.
        problem: What is wrong with the answer; "": nothing.
    """

    model: str
    case: int
    url: str
    problem: str


def verify(
    declared: Declared, urls: tuple[str, ...], *, timeout_s: float = 30.0
) -> tuple[Verdict, ...]:
    """Ask a server every case of a document, at each address.

    Args:
        declared: The document.
        urls: "host:port" of gRPC, "http://host:port" of HTTP.
        timeout_s: Of one case.

    Raises:
        UserError: No server answers at one of the addresses, there is no case, or a file of one is
            not an .npz file of arrays; nothing was asked then.
    """
    if not any(model.cases for model in declared.models.values()):
        raise UserError("the document has no cases", "Give models some, under `cases`.")
    arrays = {
        path: _load(path)
        for model in declared.models.values()
        for case in model.cases
        for path in (case.tensors, case.outputs)
        if path is not None
    }
    verdicts = []
    for url in urls:
        with Client(url, timeout_s=timeout_s) as client:
            client.server_name()
            for name, model in declared.models.items():
                for number, case in enumerate(model.cases, 1):
                    try:
                        problem = _problem(client, name, case, arrays)
                    except UserError as error:
                        problem = str(error)
                    verdicts.append(Verdict(name, number, url, problem))
    return tuple(verdicts)


def _problem(
    client: Client, model: str, case: Case, arrays: Mapping[Path, dict[str, Array]]
) -> str:
    if case.input is not None:
        ((best,),) = client.classify(model, [case.input], k=1)
        if best.label != case.label:
            return f"{case.input.name}: {best.label} ({best.probability:.3f}), not {case.label}"
        if case.probability is not None:
            off = abs(best.probability - case.probability)
            if off > case.tolerance:
                return (
                    f"{case.input.name}: {best.label} at {best.probability:.4f}, which is"
                    f" {off:.4f} from {case.probability:g}"
                )
        return ""
    assert case.tensors is not None
    assert case.outputs is not None
    wanted = arrays[case.outputs]
    found = client.infer(model, arrays[case.tensors])
    for name, array in wanted.items():
        if name not in found:
            return f"{case.outputs.name} has an output '{name}', the model none"
        if found[name].shape != array.shape:
            return f"'{name}' has shape {list(found[name].shape)}, not {list(array.shape)}"
        if not np.allclose(found[name], array, rtol=case.rtol, atol=case.atol):
            worst = float(np.max(np.abs(np.subtract(found[name], array, dtype=np.float64))))
            return f"'{name}' differs by up to {worst:.3g}"
    return ""


def _load(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not arrays:
            raise ValueError("it holds none")
        return arrays
    # Of one array alone (.npy), `np.load` gives what is no context manager: TypeError.
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not an .npz file of arrays: {error}", "Write it with numpy.savez."
        ) from error
