"""The bytes of one request, and the shared memory that its large inputs may lie in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from bilateral_export.errors import UserError
from bilateral_export.tensors import Array, TensorSpec
from bilateral_serving.access import call_metadata, is_loopback
from bilateral_serving.client.shared_memory import Region, layout
from bilateral_serving.credentials import open_channel

_SERVICE = "/inference.GRPCInferenceService"
_PATIENCE_S = 10.0


def serialise(model: str, arrays: Mapping[str, Array], region: Region | None = None) -> bytes:
    """Return the bytes of a ModelInferRequest.

    Args:
        model: The model's name.
        arrays: An array per input.
        region: Where the large ones are written to; None: all tensors are inside the message.
    """
    offsets = offsets_of(arrays)[0] if region else {}
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        datatype = np_to_triton_dtype(array.dtype)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if region and name in offsets:
            region.write(offsets[name], array)
            tensor.parameters["shared_memory_region"].string_param = region.name
            tensor.parameters["shared_memory_offset"].int64_param = offsets[name]
            tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes
        else:
            request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return bytes(request.SerializeToString())


def offsets_of(arrays: Mapping[str, Array]) -> tuple[dict[str, int], int]:
    """Return where in a region the large arrays go, by name, and its size in bytes."""
    specs = [TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    return layout(specs, arrays)


def is_shared(url: str, arrays: Mapping[str, Array], wanted: bool | None) -> bool:
    """Return whether a request uses shared memory, by the rule of the client.

    Args:
        url: "host:port" of the server.
        arrays: The request's inputs.
        wanted: None: if the address is a loopback one, an input is large, and it works.

    Raises:
        UserError: It is wanted and does not work.
    """
    size = offsets_of(arrays)[1]
    if wanted is False or not size or (wanted is None and not is_loopback(url)):
        return False
    try:
        with registered(url, size):
            return True
    except UserError:
        if wanted:
            raise
        return False


@contextlib.contextmanager
def registered(url: str, size: int) -> Iterator[Region]:
    """Shared memory that a server knows by its name, until the end of the block.

    Raises:
        UserError: There is none to have, or the server cannot map it.
    """
    fix = "Measure without it: the server must be on this machine."
    try:
        region = Region(size)
    except OSError as error:
        raise UserError(f"no shared memory: {error}", fix) from error
    with contextlib.closing(region), open_channel(url) as channel:
        try:
            channel.unary_unary(
                f"{_SERVICE}/SystemSharedMemoryRegister",
                service_pb2.SystemSharedMemoryRegisterRequest.SerializeToString,
            )(
                service_pb2.SystemSharedMemoryRegisterRequest(
                    name=region.name, key=region.key, byte_size=region.size
                ),
                timeout=_PATIENCE_S,
                metadata=call_metadata(url),
            )
        except grpc.RpcError as error:
            raise UserError(f"no shared memory with {url}: {error.details()}", fix) from error
        region.hide()
        try:
            yield region
        finally:
            with contextlib.suppress(grpc.RpcError):
                channel.unary_unary(
                    f"{_SERVICE}/SystemSharedMemoryUnregister",
                    service_pb2.SystemSharedMemoryUnregisterRequest.SerializeToString,
                )(
                    service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name),
                    timeout=_PATIENCE_S,
                    metadata=call_metadata(url),
                )
