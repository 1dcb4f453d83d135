"""Random edits of a configuration: every field may be changed, removed or doubled."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as pb

# What a good configuration does not have, and an edit adds.
ADDED = (
    "instance_group { count: 1 kind: KIND_CPU gpus: 0 }",
    "instance_group { count: 1 kind: KIND_AUTO }",
    "instance_group { count: 1 kind: KIND_AUTO gpus: 0 }",
    "instance_group { count: 1 kind: KIND_MODEL }",
    "instance_group { count: 1 kind: KIND_MODEL gpus: 0 }",
    'instance_group { count: 1 kind: KIND_CPU profile: "0" }',
    "instance_group { kind: KIND_GPU }",
    "dynamic_batching { preferred_batch_size: 2 }",
    "dynamic_batching { preferred_batch_size: 3 preferred_batch_size: 16 }",
    "dynamic_batching { preferred_batch_size: 0 }",
    "dynamic_batching { preserve_ordering: true }",
    "dynamic_batching { priority_levels: 2 }",
    "dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
    "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
    "dynamic_batching { priority_levels: 2 default_priority_level: 1 preserve_ordering: true }",
    "dynamic_batching { priority_levels: 1 default_priority_level: 1"
    " priority_queue_policy { key: 4 value { max_queue_size: 1 } } }",
    "dynamic_batching { preserve_ordering: true"
    " default_queue_policy { default_timeout_microseconds: 5 timeout_action: DELAY } }",
    "dynamic_batching { default_queue_policy { max_queue_size: 3 } }",
    "sequence_batching { oldest { preferred_batch_size: 2 } }",
    "sequence_batching { oldest { preferred_batch_size: 32 } }",
    "response_cache { enable: true }",
    "response_cache { enable: true } model_transaction_policy { decoupled: true }",
    "model_transaction_policy { decoupled: true }",
    'default_model_filename: "model.py"',
    'default_model_filename: "model.onnx"',
    'default_model_filename: "other.py"',
    'platform: "onnxruntime_onnx"',
    'platform: "ensemble"',
    'ensemble_scheduling { step { model_name: "x" model_version: -1 } }',
    "version_policy { latest { num_versions: 0 } }",
    "version_policy { specific { versions: 1 versions: 9 } }",
    "version_policy { specific { versions: 9 } }",
    "version_policy { specific { } }",
    'input { name: "more" data_type: TYPE_FP32 dims: 1 }',
    'input { name: "more" data_type: TYPE_FP32 dims: 1 optional: true }',
    'output { name: "more" data_type: TYPE_FP32 dims: 1 }',
    'input { name: "more" data_type: TYPE_FP32 }',
    'output { name: "" data_type: TYPE_FP32 dims: 1 }',
    'model_warmup { name: "again" batch_size: 1 }',
    'model_warmup { name: "none" batch_size: 0 }',
    'parameters { key: "threads" value { string_value: "many" } }',
    'parameters { key: "runtime" value { string_value: "torch" } }',
    'parameters { key: "other" value { string_value: "x" } }',
    "optimization { priority: PRIORITY_MAX }",
    "optimization { input_pinned_memory { enable: false } }",
)
# What is set on the first input or output.
SET: tuple[Callable[[Any], object], ...] = (
    lambda tensor: tensor.reshape.shape.extend([1, *tensor.dims]),
    lambda tensor: tensor.reshape.shape.extend([2, *tensor.dims]),
    lambda tensor: tensor.reshape.SetInParent(),
    lambda tensor: setattr(tensor, "is_shape_tensor", True),
    lambda tensor: tensor.dims.__setitem__(0, -1),
    lambda tensor: tensor.dims.append(1),
)


def edit(config: pb.ModelConfig, random_: random.Random) -> str:
    """Change a configuration in one place, and say where; its name stays."""
    kind = random_.random()
    if kind < 0.35:
        text = random_.choice(ADDED)
        added = text_format.Parse(text, pb.ModelConfig())
        for name in [field.name for field, _ in added.ListFields()]:
            replaced = name in ("instance_group", "dynamic_batching", "version_policy")
            if replaced and random_.random() < 0.8:
                config.ClearField(name)
        config.MergeFrom(added)
        return f"add {text}"
    if kind < 0.45:
        number = random_.randrange(len(SET))
        which = random_.choice(("input", "output"))
        SET[number](getattr(config, which)[0])
        return f"set {number} of {which}"
    place = random_.choice([*_places(config)])
    return _change(*place, random_)


def _places(message: Message, path: str = "") -> Iterator[tuple[Message, FieldDescriptor, str]]:
    for field, value in message.ListFields():
        where = f"{path}.{field.name}"
        if where == ".name":
            continue
        yield message, field, where
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if field.message_type.GetOptions().map_entry:
            for key in sorted(value):
                if isinstance(value[key], Message):
                    yield from _places(value[key], f"{where}[{key}]")
        elif isinstance(value, Message):
            yield from _places(value, where)
        else:
            for index, item in enumerate(value):
                yield from _places(item, f"{where}[{index}]")


def _change(message: Any, field: FieldDescriptor, where: str, random_: random.Random) -> str:
    value = getattr(message, field.name)
    if isinstance(value, (bool, int, str)):
        if random_.random() < 0.25:
            message.ClearField(field.name)
            return f"clear {where}"
        changed = _other(value, field, random_)
        setattr(message, field.name, changed)
        return f"{where}: {value!r:.40} -> {changed!r:.40}"
    if isinstance(value, Message):
        message.ClearField(field.name)
        return f"clear {where}"
    if hasattr(value, "keys"):
        key = random_.choice(sorted(value))
        del value[key]
        return f"remove {where}[{key}]"
    index = random_.randrange(len(value))
    deed = random_.choice(("remove", "double", "change"))
    if deed == "remove":
        del value[index]
    elif deed == "double":
        value.append(value[index])
    elif isinstance(value[index], int):
        value[index] = _other(value[index], field, random_)
    else:
        return _change(message, field, where, random_)
    return f"{deed} {where}[{index}]"


def _other(value: Any, field: FieldDescriptor, random_: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return random_.choice(("", f"{value}x", "0", "model.onnx"))
    if field.enum_type is not None:
        return random_.choice([item.number for item in field.enum_type.values])
    unsigned = field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
    # Small: as many instances are started, and as much memory is asked for.
    near = [0, 1, 2, 3, value + 1, value - 1, 2 * value, 16, -1, -2]
    if field.name in ("count", "num_versions"):
        near = [0, 1, 2, 3, -1]
    return random_.choice([number for number in near if not (unsigned and number < 0)])
