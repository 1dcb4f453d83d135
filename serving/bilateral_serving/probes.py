"""Probes by real inference: the smallest request for a model."""

from __future__ import annotations

import math

from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from bilateral_serving import raw
from bilateral_serving.config import described_versions, read_metadata


def smallest_request(config: ModelConfig) -> service_pb2.ModelInferRequest | None:
    """Return a probe for a model; None for one that zeros would disturb, or that streams."""
    if config.HasField("sequence_batching") or config.model_transaction_policy.decoupled:
        return None
    return zeros(config)


def zeros(config: ModelConfig) -> service_pb2.ModelInferRequest:
    """Return the smallest request for a model: one row of zeros, each free dimension 1.

    A model of several sizes gets the smallest image that it takes.
    """
    smallest = iter(_smallest_image(config))
    request = service_pb2.ModelInferRequest(model_name=config.name)
    for tensor in raw.required(config):
        sizes = [next(smallest, 1) if size < 0 else size for size in tensor.dims]
        shape = [1, *sizes] if config.max_batch_size > 0 else sizes
        kind = DataType.Name(tensor.data_type).removeprefix("TYPE_")
        kind = "BYTES" if kind == "STRING" else kind
        request.inputs.add(name=tensor.name, datatype=kind, shape=shape)
        # An empty string is four bytes, its length.
        width = {"BYTES": 4, "BOOL": 1}.get(kind) or int(kind.lstrip("UINTBFP")) // 8
        request.raw_input_contents.append(bytes(width * math.prod(shape)))
    for tensor in raw.of_graph(config)[1][:1]:
        request.outputs.add(name=tensor.name)
    return request


def _smallest_image(config: ModelConfig) -> tuple[int, ...]:
    """Return the smallest height and width of a model of several sizes; nothing for others."""
    versions = described_versions(config)
    about = read_metadata(config, versions[-1]) if versions else None
    return tuple(low for low, _, _ in about.image_sizes.values()) if about else ()
