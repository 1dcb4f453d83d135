"""The document: which models are served, how, and what they must answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bilateral_export.errors import UserError
from bilateral_serving.config import Device, Settings, Target
from bilateral_serving.repository.adding import check_name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeclaredSettings(_Part):
    """How a model is served, as `bilateral_serving.config.Settings`; left out, its default."""

    max_batch_size: int | None = None
    instances: int | None = None
    threads: int | None = None
    max_queue_delay_us: int | None = None
    max_queue_size: int | None = None
    versions: str | None = None
    warmup: bool | None = None
    device: Device | None = None
    runtime: str | None = None
    spinning: bool | None = None
    stream: bool | None = None
    raw: bool | None = None

    def given(self) -> Settings:
        """Return the settings.

        Raises:
            UserError: A value is out of range.
        """
        return Settings.given(**self.model_dump()) or Settings()


class Case(_Part):
    """A request and what its answer must be.

    Attributes:
        input: A file as it is: an image, a text, an expression. Needs `label`.
        label: The class that must be the most probable one.
        probability: What its probability must be, to within `tolerance`.
        tolerance: Of the probability.
        tensors: An .npz file of the model's inputs. Needs `outputs`.
        outputs: An .npz file of what must be answered.
        rtol: Relative tolerance of `outputs`, as `numpy.allclose` has it.
        atol: Absolute tolerance.
    """

    input: Path | None = None
    label: str | None = None
    probability: float | None = Field(default=None, ge=0, le=1)
    tolerance: float = Field(default=0.01, gt=0)
    tensors: Path | None = None
    outputs: Path | None = None
    rtol: float = Field(default=1e-3, ge=0)
    atol: float = Field(default=1e-4, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Case:
        kinds = (self.input is not None, self.label is not None)
        tensors = (self.tensors is not None, self.outputs is not None)
        if (kinds, tensors) not in (((True, True), (False,) * 2), ((False,) * 2, (True, True))):
            raise ValueError("a case has input and label, or tensors and outputs")
        return self


class DeclaredModel(_Part):
    """A model.

    Attributes:
        file: The ONNX file; for target tensorrt the plan. Relative to the document.
        target: What runs it.
        parity: The report of parity on the file, noted with the version when it is added.
        lower: Whether the form lowered for its runtime is served.
        settings: How it is served.
        cases: What it must answer.
    """

    file: Path
    target: Target = "python"
    parity: Path | None = None
    lower: bool = True
    settings: DeclaredSettings = DeclaredSettings()
    cases: tuple[Case, ...] = ()


class Declared(_Part):
    """All models, by name."""

    schema_version: int = Field(default=1, ge=1, le=1)
    models: dict[str, DeclaredModel] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Declared:
        for name in self.models:
            try:
                check_name(name)
            except UserError as error:
                raise ValueError(error.problem) from error
        return self


def schema() -> dict[str, Any]:
    """Return the JSON schema of a document."""
    return Declared.model_json_schema()


def read(path: Path) -> Declared:
    """Read a document (YAML, or JSON, which is YAML), with all paths made absolute.

    Raises:
        UserError: It is missing or not one, PyYAML is not installed, or a file it names is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise UserError(
            "reading YAML needs PyYAML", "Install it with `pip install 'bilateral-serve[deploy]'`."
        ) from error
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        declared = Declared.model_validate(found)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", "Check the path.") from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML: {where}", "Correct that line.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise UserError(
            f"{path}: {where}: {first['msg']}",
            "`bilateral repository apply --schema` prints what a document may say.",
        ) from error
    return _resolved(declared, path)


def _resolved(declared: Declared, path: Path) -> Declared:
    folder = path.absolute().parent
    models = {}
    for name, model in declared.models.items():
        cases = [
            case.model_copy(
                update={
                    key: folder / found
                    for key in ("input", "tensors", "outputs")
                    if (found := getattr(case, key)) is not None
                }
            )
            for case in model.cases
        ]
        moved = {"file": folder / model.file, "cases": tuple(cases)}
        if model.parity:
            moved["parity"] = folder / model.parity
        models[name] = model.model_copy(update=moved)
        named = [models[name].file, *filter(None, [models[name].parity])]
        named += [p for case in cases for p in (case.input, case.tensors, case.outputs) if p]
        for file in named:
            if not file.is_file():
                raise UserError(f"{path}: models.{name}: {file} is no file", "Check the path.")
        try:
            model.settings.given()
        except UserError as error:
            raise UserError(f"{path}: models.{name}: {error.problem}", error.fix) from error
    return declared.model_copy(update={"models": models})
