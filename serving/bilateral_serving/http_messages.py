"""Inference requests and answers as HTTP bodies: JSON, and the tensors behind it as binary data.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import (
    InferenceServerException,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

JSON_LENGTH = "Inference-Header-Content-Length"


def request(message: pb.ModelInferRequest) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an inference request without shared memory."""
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(data)},
            }
            for tensor, data in zip(message.inputs, message.raw_input_contents, strict=True)
        ],
        "outputs": [
            {"name": output.name, "parameters": {"binary_data": True}} for output in message.outputs
        ],
        "parameters": {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in message.parameters.items()
        },
    }
    if message.id:
        head["id"] = message.id
    text = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    return b"".join((text, *message.raw_input_contents)), headers


def answer(body: bytes, headers: Mapping[str, str]) -> pb.ModelInferResponse:
    """Return an inference's answer as gRPC's message.

    Raises:
        InferenceServerException: The body is not such an answer.
    """
    try:
        end = int(headers.get(JSON_LENGTH, len(body)))
        head = json.loads(body[:end])
        message = pb.ModelInferResponse(
            model_name=head["model_name"], model_version=head.get("model_version", "")
        )
        for output in head["outputs"]:
            message.outputs.add(
                name=output["name"], datatype=output["datatype"], shape=output["shape"]
            )
            size = output.get("parameters", {}).get("binary_data_size")
            message.raw_output_contents.append(
                _from_json(output) if size is None else body[end : end + size]
            )
            end += size or 0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InferenceServerException(
            f"the answer cannot be read: {error!r}", "UNIMPLEMENTED"
        ) from error
    return message


def _from_json(output: Mapping[str, Any]) -> bytes:
    """Return a tensor that a server sent as numbers or texts as the bytes that gRPC carries."""
    array = np.asarray(output["data"], triton_to_np_dtype(output["datatype"]))
    if array.dtype == np.object_:
        return bytes(serialize_byte_tensor(array).item()) if array.size else b""
    return array.tobytes()
