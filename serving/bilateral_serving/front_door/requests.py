"""gRPC request inspection: the method, and a few fields of an inference request.

Requests are passed on as the bytes that came. Of a ModelInferRequest only the fields around the
tensors' contents are looked at; a request of some megabytes costs no more than a small one.
"""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as pb

_SERVICE = "/inference.GRPCInferenceService/"

LIVE = _SERVICE + "ServerLive"
INFER = _SERVICE + "ModelInfer"
STREAM = _SERVICE + "ModelStreamInfer"
MODEL_READY = _SERVICE + "ModelReady"
SERVER_METADATA = _SERVICE + "ServerMetadata"
# Answered at once or not at all: whoever asks these wants to know how things are now.
HEALTH = frozenset(
    (
        LIVE,
        _SERVICE + "ServerReady",
        MODEL_READY,
        "/grpc.health.v1.Health/Check",
    )
)
DESCRIPTION = frozenset((SERVER_METADATA, _SERVICE + "ModelMetadata", _SERVICE + "ModelConfig"))
OPEN = HEALTH | DESCRIPTION | {INFER}
# gRPC's clients take UNIMPLEMENTED as "this server does not report changes", and Triton does not.
WATCH = "/grpc.health.v1.Health/Watch"

# What is answered while the server ends: live, not ready, and NOT_SERVING.
WHILE_DRAINING = {
    LIVE: b"\x08\x01",
    _SERVICE + "ServerReady": b"",
    _SERVICE + "ModelReady": b"",
    "/grpc.health.v1.Health/Check": b"\x08\x02",
}

_RAW_CONTENTS = 7  # of inference.ModelInferRequest
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def envelope(request: bytes) -> bytes:
    """Return a ModelInferRequest's serialized form without `raw_input_contents`.

    Raises:
        ValueError: It is not one.
    """
    # The wire format: https://protobuf.dev/programming-guides/encoding. All fields of this message
    # have numbers below 16, so that a tag is one byte. Anything else is refused: nothing may be
    # read here in another way than the server reads it.
    kept = []
    position, end = 0, len(request)
    while position < end:
        start, tag = position, request[position]
        position += 1
        kind = tag & 7
        if tag >= 0x80 or kind not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
            raise ValueError(f"unknown field at byte {start}")
        if kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        else:
            value = shift = 0
            while True:
                if position >= end or shift > 63:
                    raise ValueError(f"not a number at byte {start}")
                byte = request[position]
                position += 1
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
            if kind == _LENGTH:
                position += value
        if position > end:
            raise ValueError(f"the field at byte {start} is cut off")
        if tag != _RAW_CONTENTS << 3 | _LENGTH:
            kept.append(request[start:position])
    return b"".join(kept)


def refers_to_shared_memory(around: bytes) -> bool:
    """Return whether a request, given by its `envelope`, names a region of shared memory.

    Raises:
        ValueError: It is not a ModelInferRequest.
    """
    # A key of the message is there as its bytes; a text of an input can hold them by chance.
    if b"shared_memory" not in around:
        return False
    request = _parse(around)
    return any(
        name.startswith("shared_memory")
        for tensor in (*request.inputs, *request.outputs, request)
        for name in tensor.parameters
    )


def is_of_sequence(around: bytes) -> bool:
    """Return whether a request, given by its `envelope`, may change the state of a sequence."""
    return b"sequence_" in around


def named(around: bytes) -> tuple[str, str, str]:
    """Return the model, the version and the id of a request, given by its `envelope`.

    Raises:
        ValueError: It is not a ModelInferRequest.
    """
    request = _parse(around)
    return request.model_name, request.model_version, request.id


def answering_version(answer: bytes) -> str:
    """Return the version that Triton's ModelInferResponse names; empty if it begins otherwise."""
    # Triton writes the fields in order: 1, the model's name, and 2, its version.
    for tag in (0x0A, 0x12):
        if len(answer) < 2 or answer[0] != tag or answer[1] >= 0x80:
            return ""
        value, answer = answer[2 : 2 + answer[1]], answer[2 + answer[1] : 512]
    return value.decode(errors="replace")


def words_request(request: bytes) -> pb.ModelInferRequest | None:
    """Return a stream's request if it may be one for words: it has an input "text"; else None.

    Raises:
        ValueError: It is not a ModelInferRequest.
    """
    if b"text" not in envelope(request):
        return None
    parsed = _parse(request)
    return parsed if any(tensor.name == "text" for tensor in parsed.inputs) else None


def _parse(around: bytes) -> pb.ModelInferRequest:
    try:
        return pb.ModelInferRequest.FromString(around)
    except Exception as error:  # protobuf's DecodeError, by implementation
        raise ValueError("not a ModelInferRequest") from error
