"""config.pbtxt, whatever the settings and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import tiny_models as models

from bilateral_export.artifact import Artifact
from bilateral_export.errors import UserError
from bilateral_export.tensors import TensorSpec
from bilateral_serving import config as configs
from bilateral_serving.config import Settings
from bilateral_serving.repository import config_builder

sizes = st.one_of(st.integers(1, 4096), st.sampled_from(["length", "width"]))
shapes = st.lists(sizes, max_size=4).map(lambda rest: ("batch", *rest))
dtypes = st.sampled_from(["float32", "float16", "int64", "bool"])
names = st.text("abcdefgh_0123456789", min_size=1, max_size=12)


@st.composite
def artifacts(draw: st.DrawFn) -> Artifact:
    tensors = [
        TensorSpec(name, draw(dtypes), draw(shapes))
        for name in draw(st.lists(names, min_size=2, max_size=5, unique=True))
    ]
    cut = draw(st.integers(1, len(tensors) - 1))
    about = draw(st.sampled_from([None, models.metadata()]))
    return Artifact(Path("m.onnx"), tuple(tensors[:cut]), tuple(tensors[cut:]), about)


settings = st.builds(
    Settings,
    max_batch_size=st.one_of(st.none(), st.integers(0, 64)),
    instances=st.integers(1, 8),
    threads=st.integers(0, 8),
    max_queue_delay_us=st.integers(0, 10_000),
    max_queue_size=st.integers(0, 100),
    versions=st.sampled_from(["latest", "latest:3", "all", "2,5"]),
    warmup=st.booleans(),
).filter(lambda chosen: chosen.max_batch_size != 0 or not queues(chosen))


def queues(chosen: Settings) -> bool:
    """Whether the settings ask for what only batching has."""
    return bool(chosen.max_queue_delay_us or chosen.max_queue_size)


@given(artifacts(), settings)
def test_what_is_written_is_what_is_read(artifact: Artifact, chosen: Settings) -> None:
    config = config_builder.build("m", artifact, "python", chosen)
    configs.set_metadata(config, 3, artifact.metadata)
    read = configs.parse(configs.write(config), "config.pbtxt")
    assert read == config
    assert configs.read_metadata(read, 3) == artifact.metadata
    configs.check_interface(read, artifact)


@given(artifacts(), st.data())
def test_any_other_interface_is_noticed(artifact: Artifact, data: st.DataObject) -> None:
    config = config_builder.build("m", artifact, "python", Settings())
    spec = data.draw(st.sampled_from(artifact.inputs))
    changed = data.draw(
        st.sampled_from(
            [
                TensorSpec(f"{spec.name}x", spec.dtype, spec.shape),
                TensorSpec(spec.name, "uint8", spec.shape),
                TensorSpec(spec.name, spec.dtype, (*spec.shape, 4097)),
            ]
        )
    )
    inputs = tuple(changed if item == spec else item for item in artifact.inputs)
    other = Artifact(artifact.path, inputs, artifact.outputs, artifact.metadata)
    with pytest.raises(UserError, match="Versions of one model must agree"):
        configs.check_interface(config, other)


def test_an_unknown_target_is_refused() -> None:
    artifact = Artifact(Path("m.onnx"), (), ())
    with pytest.raises(UserError, match="unknown target 'openvino'"):
        config_builder.build("m", artifact, "openvino", Settings())  # type: ignore[arg-type]


def test_bfloat16_is_refused_where_numpy_carries_the_tensors() -> None:
    spec = TensorSpec("x", "bfloat16", ("batch", 3))
    artifact = Artifact(Path("m.onnx"), (spec,), (spec,))
    with pytest.raises(UserError, match="bfloat16"):
        config_builder.build("m", artifact, "python", Settings())
    assert config_builder.build("m", artifact, "tensorrt", Settings()).input[0].data_type
