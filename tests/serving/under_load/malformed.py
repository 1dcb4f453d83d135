"""Inference requests that are wrong in one way or another, made from the schema, and raw bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tritonclient.grpc import service_pb2 as pb

DATATYPES = (
    *"BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BF16 BYTES".split(),  # noqa: SIM905
    *("", "fp32", "FLOAT", "FP32\0", "X" * 300),
)
MODELS = (
    "quadrants",
    "wide",
    "slow",
    "words",
    "nobody",
    "",
    "../quadrants",
    "q" * 5000,
    "quädrants",
)
NAMES = ("pixel_values", "x", "turns", "text", "max_tokens", "nothing", "", "pixel_values\0")
DIMS = (0, 1, 2, 4, 9, -1, -(2**63), 2**31, 2**62, 2**63 - 1)
PARAMETERS = [
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "timeout",
    "binary_data_output",
    "leave",
    "triton_enable_empty_final_response",
    "shared_memory_region",
    "shared_memory_offset",
    "shared_memory_byte_size",
    "classification",
    "binary_data_size",
    "traceparent",
    "bilateral-accepted",
    "x",
]
CONTENTS = [
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
]


class Malformed:
    """Makes requests, each from one seed: good ones, with one to four things wrong.

    Args:
        chance: Where the choices come from.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def message(self) -> pb.ModelInferRequest:
        """A ModelInferRequest that protobuf can write."""
        request = pb.ModelInferRequest(model_name="quadrants", id=f"{self._chance.random()}")
        tensor = request.inputs.add(name="pixel_values", datatype="FP32", shape=(1, 1, 2, 2))
        if self._chance.random() < 0.5:
            request.raw_input_contents.append(self._chance.randbytes(16))
        else:
            tensor.contents.fp32_contents.extend([1.0, 2.0, 3.0, 4.0])
        changes: tuple[Callable[[pb.ModelInferRequest], None], ...] = (
            self._rename, self._reshape, self._retype, self._misplace, self._resize,
            self._duplicate, self._parametrise, self._ask_for,
        )  # fmt: skip
        for change in self._chance.sample(changes, self._chance.randint(1, 4)):
            change(request)
        return request

    def message_bytes(self) -> bytes:
        """Such a request, or one whose bytes are damaged, or no request at all."""
        kind = self._chance.random()
        if kind < 0.1:
            return self._chance.randbytes(self._chance.randint(0, 2000))
        whole = bytearray(self.message().SerializeToString())
        if kind < 0.3:
            for _ in range(self._chance.randint(1, 8)):
                whole[self._chance.randrange(len(whole))] = self._chance.randrange(256)
            return bytes(whole[: self._chance.randint(0, len(whole))])
        return bytes(whole)

    def http(self) -> tuple[str, bytes, dict[str, str]]:
        """A path, a body and headers: JSON, JSON and tensors, or neither."""
        request = self.message()
        document: dict[str, Any] = {"inputs": [], "outputs": []}
        tail = b""
        for tensor in request.inputs:
            entry: dict[str, Any] = {
                "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape),
            }  # fmt: skip
            if self._chance.random() < 0.5:
                entry["data"] = self._chance.choice(
                    ([1, 2, 3, 4], [], "text", [[1], [2, 3]], [None], [1e400], {"a": 1}, [True] * 9)
                )
            else:
                size = self._chance.choice((16, 0, 15, -1, 2**40, "16"))
                entry["parameters"] = {"binary_data_size": size}
                tail += self._chance.randbytes(16)
            document["inputs"].append(entry)
        for output in request.outputs:
            document["outputs"].append({"name": output.name, "parameters": {"binary_data": 1}})
        if self._chance.random() < 0.3:
            parameter = self._chance.choice(PARAMETERS)
            document["parameters"] = {parameter: self._chance.choice((1, -1, "x", None, [], {}))}
        if self._chance.random() < 0.1:
            document[self._chance.choice(("inputs", "outputs", "id"))] = self._chance.choice(
                (None, 1, {}, [1], [None])
            )
        head = json.dumps(document).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
        body = head + tail
        if self._chance.random() < 0.15:
            body = body[: self._chance.randint(0, len(body))] or self._chance.randbytes(40)
        if self._chance.random() < 0.1:
            wrong = self._chance.choice(("0", "-1", "99999999999", "x", str(len(head) - 1)))
            headers["Inference-Header-Content-Length"] = wrong
        model = self._chance.choice(("quadrants", "wide", "slow", "words", "nobody"))
        verb = self._chance.choice(("infer", "infer", "infer", "generate"))
        return f"/v2/models/{model}/{verb}", body, headers

    def _rename(self, request: pb.ModelInferRequest) -> None:
        if self._chance.random() < 0.5:
            request.model_name = self._chance.choice(MODELS)
        else:
            request.inputs[0].name = self._chance.choice(NAMES)
        if self._chance.random() < 0.2:
            request.model_version = self._chance.choice(("1", "2", "-1", "x", "9" * 30))

    def _reshape(self, request: pb.ModelInferRequest) -> None:
        shape = [self._chance.choice(DIMS) for _ in range(self._chance.choice((0, 1, 2, 4, 4, 60)))]
        del request.inputs[0].shape[:]
        request.inputs[0].shape.extend(shape)

    def _retype(self, request: pb.ModelInferRequest) -> None:
        request.inputs[0].datatype = self._chance.choice(DATATYPES)

    def _misplace(self, request: pb.ModelInferRequest) -> None:
        """Typed contents of another kind, often beside raw ones."""
        field = self._chance.choice(CONTENTS)
        value = {"bool_contents": True, "bytes_contents": b"x", "fp32_contents": 1.0}.get(field, 1)
        values = getattr(request.inputs[0].contents, field)
        values.extend([value] * self._chance.choice((1, 3, 4, 5, 1000)))

    def _resize(self, request: pb.ModelInferRequest) -> None:
        for _ in range(self._chance.randint(1, 3)):
            size = self._chance.choice((0, 1, 3, 15, 17, 16, 4096))
            request.raw_input_contents.append(self._chance.randbytes(size))
        if self._chance.random() < 0.3:
            del request.raw_input_contents[0]

    def _duplicate(self, request: pb.ModelInferRequest) -> None:
        for _ in range(self._chance.choice((1, 2, 100))):
            request.inputs.add().CopyFrom(request.inputs[0])

    def _parametrise(self, request: pb.ModelInferRequest) -> None:
        at = self._chance.choice((request, request.inputs[0], request.outputs.add(name="logits")))
        for name in self._chance.sample(PARAMETERS, 3):
            parameter = at.parameters[name]
            kind = self._chance.choice(("bool_param", "int64_param", "string_param", "none"))
            if kind == "bool_param":
                parameter.bool_param = True
            elif kind == "int64_param":
                parameter.int64_param = self._chance.choice((0, 1, -1, 2**62))
            elif kind == "string_param":
                parameter.string_param = self._chance.choice(("", "x", "1", "\x00", "y" * 9000))

    def _ask_for(self, request: pb.ModelInferRequest) -> None:
        for _ in range(self._chance.choice((1, 2, 50))):
            request.outputs.add(name=self._chance.choice(("logits", "y", "", "nothing")))
