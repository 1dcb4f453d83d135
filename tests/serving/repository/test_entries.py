"""Adding, listing, showing and removing models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from google.protobuf import text_format
from tests.builders import tiny_models as models
from tests.builders.exported import exported
from tritonclient.grpc import model_config_pb2 as pb

from bilateral_export.errors import UserError
from bilateral_serving import config as configs
from bilateral_serving import repository
from bilateral_serving.config import Settings
from bilateral_serving.repository import lowering
from bilateral_serving.repository.lock import LOCK_FILE

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return models.quadrants(tmp_path / "model.onnx")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by relative path; directories as empty entries."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
        if path.name != LOCK_FILE
    }


def read_config(root: Path, name: str) -> pb.ModelConfig:
    return text_format.Parse((root / name / "config.pbtxt").read_text(), pb.ModelConfig())


def test_add_writes_a_whole_model(onnx_file: Path, root: Path) -> None:
    entry = repository.add("quadrants", onnx_file, root)

    assert sorted(snapshot(root)) == [
        "quadrants",
        "quadrants/1",
        "quadrants/1/metrics.py",
        "quadrants/1/model.onnx",
        "quadrants/1/model.py",
        "quadrants/1/tracing.py",
        "quadrants/config.pbtxt",
        "quadrants/labels.txt",
    ]
    assert (root / "quadrants/1/model.onnx").read_bytes() == onnx_file.read_bytes()
    assert (root / "quadrants/labels.txt").read_text().splitlines() == list(models.QUADRANTS)
    assert entry == repository.show("quadrants", root)
    assert [version.number for version in entry.versions] == [1]
    assert entry.versions[0].metadata == models.metadata()
    assert str(entry.inputs[0]) == "pixel_values float32[batch, 1, 2, 2]"


def test_the_configuration_says_how_the_model_is_served(onnx_file: Path, root: Path) -> None:
    settings = Settings(
        max_batch_size=16, instances=2, threads=3, max_queue_delay_us=250, versions="latest:2"
    )
    repository.add("quadrants", onnx_file, root, settings=settings)

    config = read_config(root, "quadrants")
    assert (config.name, config.backend, config.max_batch_size) == ("quadrants", "python", 16)
    assert list(config.input[0].dims) == [1, 2, 2]
    assert config.output[0].label_filename == "labels.txt"
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, pb.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert config.version_policy.latest.num_versions == 2
    assert config.parameters["threads"].string_value == "3"
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 16]
    assert configs.read_metadata(config, 1) == models.metadata()


def test_a_fixed_batch_turns_batching_off(tmp_path: Path, root: Path) -> None:
    entry = repository.add("fixed", models.quadrants(tmp_path / "f.onnx", batch=1), root)

    config = read_config(root, "fixed")
    assert entry.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 1, 2, 2]
    assert not config.HasField("dynamic_batching")


def test_a_fixed_batch_refuses_a_largest_batch(tmp_path: Path, root: Path) -> None:
    fixed = models.quadrants(tmp_path / "f.onnx", batch=1)
    with pytest.raises(UserError, match=r"max_batch_size 4 needs .* 'pixel_values' .* shape"):
        repository.add("fixed", fixed, root, settings=Settings(max_batch_size=4))
    assert not root.exists()


def test_integer_inputs_warm_up_with_zeros(tmp_path: Path, root: Path) -> None:
    repository.add("lookup", models.lookup(tmp_path / "l.onnx"), root)
    warmup = read_config(root, "lookup").model_warmup[0]
    assert warmup.inputs["ids"].zero_data


def test_external_data_is_copied_along(tmp_path: Path, root: Path) -> None:
    path = models.with_external_data(tmp_path / "big.onnx")
    seen: list[tuple[int, int]] = []
    repository.add("big", path, root, on_progress=lambda done, total: seen.append((done, total)))

    data = root / "big/1/big.onnx.data"
    assert data.read_bytes() == (tmp_path / "big.onnx.data").read_bytes()
    assert seen[-1][0] == seen[-1][1] == path.stat().st_size + data.stat().st_size


def test_missing_external_data_is_named(tmp_path: Path, root: Path) -> None:
    path = models.with_external_data(tmp_path / "big.onnx")
    (tmp_path / "big.onnx.data").unlink()
    with pytest.raises(UserError, match=r"big\.onnx\.data does not exist"):
        repository.add("big", path, root)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_targets_of_the_container(target: str, tmp_path: Path, root: Path) -> None:
    onnx_file = models.quadrants(tmp_path / "model.onnx")
    model = onnx_file
    if target == "tensorrt":
        model = tmp_path / "model.plan"
        model.write_bytes(b"an engine")
    entry = repository.add("quadrants", model, root, target=target)  # type: ignore[arg-type]

    config = read_config(root, "quadrants")
    assert entry.target == config.backend == target
    assert config.default_model_filename == f"model{model.suffix}"
    assert not (root / "quadrants/1/model.py").exists()
    assert entry.device == ("gpu" if target == "tensorrt" else "cpu")


class TestSecondVersion:
    def test_takes_the_next_number_and_keeps_the_settings(
        self, tmp_path: Path, onnx_file: Path, root: Path
    ) -> None:
        repository.add("quadrants", onnx_file, root, settings=Settings(instances=2))
        newer = models.quadrants(tmp_path / "newer.onnx", checkpoint_sha256="1" * 64)
        entry = repository.add("quadrants", newer, root)

        assert [version.number for version in entry.versions] == [1, 2]
        assert entry.instances == 2
        shas = [v.metadata.checkpoint_sha256 for v in entry.versions if v.metadata]
        assert shas == ["0" * 64, "1" * 64]

    def test_new_settings_keep_the_metadata(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        entry = repository.add("quadrants", onnx_file, root, settings=Settings(instances=3))
        assert entry.instances == 3
        assert all(version.metadata == models.metadata() for version in entry.versions)

    def test_keeps_what_was_done_to_the_others_and_serves_them_on_their_runtime(
        self, tmp_path_factory: pytest.TempPathFactory, root: Path
    ) -> None:
        digits = exported("digits_bilateral", tmp_path_factory)
        repository.add("digits", digits, root)
        repository.add("digits", digits, root, settings=Settings(instances=2))
        parameters = read_config(root, "digits").parameters
        assert parameters["lowering/1"].string_value == "onnxruntime-cpu: 4 x mask"
        assert parameters["lowering/2"] == parameters["lowering/1"]

        before = snapshot(root)
        for other in (Settings(runtime="openvino"), Settings(device="gpu")):
            with pytest.raises(UserError, match=r"were lowered .*, and not for these settings"):
                repository.add("digits", digits, root, settings=other)
        assert snapshot(root) == before

    def test_must_take_and_give_the_same(self, tmp_path: Path, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        before = snapshot(root)
        other = models.sum_and_product(tmp_path / "other.onnx")
        with pytest.raises(UserError, match=r"has input pixel_values .* but .*other\.onnx has a "):
            repository.add("quadrants", other, root)
        assert snapshot(root) == before

    @pytest.mark.parametrize("what", ["labels", "preprocessing"])
    def test_must_mean_the_same(
        self, what: str, tmp_path: Path, onnx_file: Path, root: Path
    ) -> None:
        changes = {
            "labels": ("a", "b", "c", "d"),
            "preprocessing": models.PREPROCESSING.model_copy(update={"mean": (0.5,)}),
        }
        repository.add("quadrants", onnx_file, root)
        other = models.quadrants(tmp_path / "other.onnx", **{what: changes[what]})
        with pytest.raises(UserError, match=f"has other {what}"):
            repository.add("quadrants", other, root)

    def test_must_have_the_same_target(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        with pytest.raises(UserError, match="served by target python, not onnxruntime"):
            repository.add("quadrants", onnx_file, root, target="onnxruntime")

    def test_number_must_be_free(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root, version=7)
        with pytest.raises(UserError, match="quadrants/7 exists already"):
            repository.add("quadrants", onnx_file, root, version=7)

    def test_may_replace_a_committed_configuration_without_versions(
        self, tmp_path: Path, onnx_file: Path, root: Path
    ) -> None:
        repository.add("quadrants", onnx_file, root, settings=Settings(instances=2))
        repository.remove("quadrants", root, version=1)
        entry = repository.add("quadrants", onnx_file, root)
        assert (entry.instances, [v.number for v in entry.versions]) == (2, [1])

    def test_failing_half_way_restores_everything(
        self, tmp_path: Path, onnx_file: Path, root: Path
    ) -> None:
        repository.add("quadrants", onnx_file, root)
        before = snapshot(root)

        def interrupt(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            repository.add(
                "quadrants", onnx_file, root, settings=Settings(instances=4), on_progress=interrupt
            )
        assert snapshot(root) == before


class TestRemove:
    def test_a_version(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        repository.add("quadrants", onnx_file, root)
        repository.remove("quadrants", root, version=1)
        entry = repository.show("quadrants", root)
        assert [version.number for version in entry.versions] == [2]
        assert configs.described_versions(read_config(root, "quadrants")) == (2,)

    def test_a_version_that_the_policy_names(self, onnx_file: Path, root: Path) -> None:
        for _ in range(2):
            repository.add("quadrants", onnx_file, root, settings=Settings(versions="1,2"))
        repository.remove("quadrants", root, version=1)
        assert read_config(root, "quadrants").version_policy == configs.version_policy("2")
        repository.remove("quadrants", root, version=2)
        policy = read_config(root, "quadrants").version_policy
        assert policy == configs.version_policy("latest")

    def test_a_policy_that_would_serve_nothing(self, onnx_file: Path, root: Path) -> None:
        with pytest.raises(UserError, match=r"the versions to serve, 5, 7, are not there"):
            repository.add("quadrants", onnx_file, root, settings=Settings(versions="5,7"))
        assert not root.exists()

    def test_what_was_done_to_a_version_goes_with_it(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        config = read_config(root, "quadrants")
        lowering.note(config, 1, "onnxruntime-cpu: 4 x mask")
        (root / "quadrants" / "config.pbtxt").write_text(configs.write(config))
        repository.remove("quadrants", root, version=1)
        assert not [key for key in read_config(root, "quadrants").parameters if "/1" in key]

    def test_a_model(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        repository.remove("quadrants", root)
        assert repository.list_entries(root) == ()
        assert snapshot(root) == {}

    def test_unknown_names_and_versions(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        with pytest.raises(UserError, match=r"no model 'other'.*: quadrants\."):
            repository.remove("other", root)
        with pytest.raises(UserError, match=r"no version 5\. It has: 1\."):
            repository.remove("quadrants", root, version=5)


class TestBadInput:
    def test_missing_file(self, tmp_path: Path, root: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            repository.add("quadrants", tmp_path / "none.onnx", root)
        assert not root.exists()

    @pytest.mark.parametrize(
        "content", [b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"name: 'x'\n", b"{}", b"PK\x03\x04zip"]
    )
    def test_wrong_file_type(self, content: bytes, tmp_path: Path, root: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not an ONNX model"):
            repository.add("quadrants", path, root)
        assert not root.exists()

    def test_scalar_output(self, tmp_path: Path, root: Path) -> None:
        with pytest.raises(UserError, match="'total' is a scalar"):
            repository.add("scalar", models.scalar(tmp_path / "scalar.onnx"), root)

    @pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
    def test_wrong_name(self, name: str, onnx_file: Path, root: Path) -> None:
        with pytest.raises(UserError, match="cannot name a model"):
            repository.add(name, onnx_file, root)

    def test_wrong_metadata(self, tmp_path: Path, root: Path) -> None:
        import onnx

        path = models.quadrants(tmp_path / "m.onnx")
        model = onnx.load(str(path))
        model.metadata_props[0].value = '{"schema_version": 99}'
        onnx.save(model, str(path))
        with pytest.raises(UserError, match="'bilateral' metadata is not valid: schema_version"):
            repository.add("quadrants", path, root)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"instances": 0},
            {"threads": -1},
            {"max_batch_size": -1},
            {"max_batch_size": 2**31},
            {"max_queue_delay_us": 2**64},
            {"versions": "newest"},
            {"versions": "latest:99999999999"},
            {"versions": f"1,{2**63}"},
            {"device": "tpu"},
            {"runtime": "onnx"},
            {"runtime": "openvino", "device": "gpu"},
        ],
    )
    def test_wrong_settings(self, wrong: dict[str, object]) -> None:
        with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
            Settings(**wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("version", [0, 2**63])
    def test_wrong_version(self, version: int, onnx_file: Path, root: Path) -> None:
        with pytest.raises(UserError, match=f"version is {version}"):
            repository.add("quadrants", onnx_file, root, version=version)
        assert not root.exists()

    def test_an_interface_for_what_has_its_own(self, onnx_file: Path, root: Path) -> None:
        with pytest.raises(UserError, match="target python was given an interface"):
            repository.add("quadrants", onnx_file, root, interface=onnx_file)

    def test_a_model_of_no_stream(self, tmp_path: Path, root: Path) -> None:
        settings = Settings(stream=True, max_batch_size=0)
        with pytest.raises(UserError, match="how many streams run at once"):
            repository.add("words", models.words(tmp_path / "w.onnx"), root, settings=settings)
        assert not root.exists()

    def test_no_repository(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no model repository at"):
            repository.list_entries(tmp_path / "none")

    def test_damaged_configuration(self, onnx_file: Path, root: Path) -> None:
        repository.add("quadrants", onnx_file, root)
        (root / "quadrants/config.pbtxt").write_text("name: 'quadrants'\nmax_batch_sise: 8\n")
        with pytest.raises(UserError, match=r"config\.pbtxt is not a valid .* 2:1"):
            repository.list_entries(root)

    def test_a_foreign_directory_is_left_alone(self, onnx_file: Path, root: Path) -> None:
        (root / "quadrants").mkdir(parents=True)
        (root / "quadrants/notes.txt").write_text("mine")
        with pytest.raises(UserError, match=r"has no config\.pbtxt"):
            repository.add("quadrants", onnx_file, root)
        assert (root / "quadrants/notes.txt").read_text() == "mine"

    def test_full_disk(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
        try:
            small = models.quadrants(tmp_path / "small.onnx")
            repository.add("small", small, disk)
            before = snapshot(disk)
            big = models.with_external_data(tmp_path / "big.onnx", megabytes=1)
            with pytest.raises(UserError, match="No space left on device"):
                repository.add("big", big, disk)
            assert snapshot(disk) == before
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_half_way(self, number: signal.Signals, tmp_path: Path) -> None:
        path = models.with_external_data(tmp_path / "big.onnx", megabytes=24)
        root = tmp_path / "repository"
        script = textwrap.dedent(
            """
            import signal, sys, time
            from pathlib import Path
            from bilateral_serving import repository

            def progress(done, total):
                print(done, flush=True)
                time.sleep(600)

            # A job in the background ignores Ctrl-C, and so would what it starts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                repository.add("big", Path(sys.argv[1]), Path(sys.argv[2]), on_progress=progress)
            except KeyboardInterrupt:
                sys.exit(130)
            """
        )
        adding = subprocess.Popen(
            [sys.executable, "-c", script, str(path), str(root)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert adding.stdout is not None
        adding.stdout.readline()
        adding.send_signal(number)
        _, errors = adding.communicate(timeout=120)
        assert adding.returncode != 0
        assert "Traceback" not in errors
        if number == signal.SIGINT:
            assert not root.exists()
            return
        # SIGTERM ends Python at once; what is left has a name that is never served.
        assert repository.list_entries(root) == ()
