"""Registry of model families and of the known models' configurations."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, TypeAdapter

from bilateral_export.errors import UserError
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifier, ImageClassifierConfig
from bilateral_export.models.family import Family, FamilyConfig
from bilateral_export.models.language import LanguageModel, LanguageModelConfig
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.models.segmenter import Segmenter, SegmenterConfig
from bilateral_export.models.sequence import SequenceClassifier, SequenceClassifierConfig

# Entry points of installed packages: a family's name, and the module that registers it.
ENTRY_POINTS = "bilateral.families"
_FAMILIES: dict[str, tuple[type[FamilyConfig], type[Family]]] = {}


def register(config: type[FamilyConfig], model: type[Family]) -> None:
    """Make a family known to checkpoints, export, parity and serving.

    A program calls it before it reads a checkpoint. For the command line, an installed package
    names the module that calls it in the entry points `bilateral.families`.

    Args:
        config: Its configuration, whose field `family` has the family's name as its default.
        model: Its model, which is called with such a configuration.

    Raises:
        ValueError: The configuration has no name, or another family has it.
    """
    name = config.model_fields["family"].default
    if not isinstance(name, str):
        raise ValueError(f"{config.__name__}.family has no default: give it the family's name")
    if _FAMILIES.setdefault(name, (config, model)) != (config, model):
        raise ValueError(f"the family {name!r} is already registered by {_FAMILIES[name]}")


register(ImageClassifierConfig, ImageClassifier)
register(SequenceClassifierConfig, SequenceClassifier)
register(LanguageModelConfig, LanguageModel)
register(SegmenterConfig, Segmenter)


def build(config: FamilyConfig) -> Family:
    """Return the model of a configuration, with fresh weights, in evaluation mode."""
    return _FAMILIES[config.family][1](config).eval()


def _of_family(document: object) -> object:
    """The configuration that a document describes, by the family it names."""
    if not isinstance(document, dict):
        return document
    name = document.get("family")
    if not isinstance(name, str):
        raise ValueError("it names no 'family'")
    if name not in _FAMILIES:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            entry.load()
    if name not in _FAMILIES:
        raise ValueError(
            f"family {name[:40]!r} is not registered: call models.registry.register,"
            f" or declare its module as an entry point of the group {ENTRY_POINTS}"
        )
    return _FAMILIES[name][0].model_validate(document)


# A field of this type takes the configuration of every registered family.
ModelConfig = Annotated[SerializeAsAny[FamilyConfig], BeforeValidator(_of_family)]
_CONFIG: TypeAdapter[FamilyConfig] = TypeAdapter(ModelConfig)


def parse_config(document: object) -> FamilyConfig:
    """Return the configuration in a document, such as a card's `model`.

    Raises:
        ValidationError: Its family is not registered, or a field is wrong.
    """
    return _CONFIG.validate_python(document)


_BILATERAL = AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian")
_LEARNED = ResidualConfig(preset="standard", learned=True)
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def _deit(size: str, distilled: bool, bilateral: bool, image_size: int) -> ImageClassifierConfig:
    dim, heads = _SIZES[size]
    return ImageClassifierConfig(
        image_size=image_size,
        dim=dim,
        heads=heads,
        distilled=distilled,
        attention=_BILATERAL if bilateral else AttentionConfig(),
        residual=_LEARNED if bilateral else ResidualConfig(),
    )


def _digits(bilateral: bool, learned_residual: bool) -> ImageClassifierConfig:
    return ImageClassifierConfig(
        image_size=8,
        patch_size=2,
        channels=1,
        dim=48,
        depth=4,
        heads=3,
        num_classes=10,
        attention=(
            _BILATERAL.model_copy(update={"bandwidth": (0.7, 2.0)})
            if bilateral
            else AttentionConfig()
        ),
        residual=_LEARNED if learned_residual else ResidualConfig(),
    )


def _segmenter(size: str, bilateral: bool) -> SegmenterConfig:
    dim, heads = _SIZES[size]
    return SegmenterConfig(
        dim=dim,
        heads=heads,
        attention=_BILATERAL if bilateral else AttentionConfig(),
        residual=_LEARNED if bilateral else ResidualConfig(),
    )


# The benchmark's lengths; sizes as in the PyTorch LRA of Nyströmformer (SEQUENCE.md).
_LRA: dict[str, dict[str, Any]] = {
    "image": {"vocabulary": 256, "length": 1024, "grid": (32, 32), "num_classes": 10},
    "text": {"vocabulary": 257, "length": 4096, "num_classes": 2},
    "listops": {"vocabulary": 16, "length": 2048, "num_classes": 10},
    "retrieval": {"vocabulary": 257, "length": 4096, "num_classes": 2, "documents": 2},
    "pathfinder": {"vocabulary": 256, "length": 1024, "grid": (32, 32), "num_classes": 2},
}


def _lra(task: str, bilateral: bool) -> SequenceClassifierConfig:
    bandwidth = (2.0, 8.0) if "grid" in _LRA[task] else (8.0, 256.0)
    return SequenceClassifierConfig(
        **_LRA[task],
        attention=(
            _BILATERAL.model_copy(update={"bandwidth": bandwidth})
            if bilateral
            else AttentionConfig()
        ),
        residual=_LEARNED if bilateral else ResidualConfig(),
    )


_WIKITEXT: dict[str, dict[str, int]] = {"small": {}, "medium": {"context": 384, "dim": 256}}


def _wikitext(bilateral: bool, **sizes: Any) -> LanguageModelConfig:
    return LanguageModelConfig(
        **sizes,
        attention=(
            _BILATERAL.model_copy(update={"bandwidth": (2.0, 128.0)})
            if bilateral
            else AttentionConfig()
        ),
        residual=_LEARNED if bilateral else ResidualConfig(),
    )


# The committed checkpoints (export/checkpoints), small enough to train on two cores in minutes.
_LISTOPS_SMALL = _lra("listops", True).model_copy(
    update={
        "length": 128,
        "depth": 3,
        "heads": 4,
        "attention": _BILATERAL.model_copy(update={"bandwidth": (2.0, 24.0)}),
    }
)
_PYDOC = _wikitext(
    True, vocabulary=2_520, context=128, dim=64, depth=4, heads=4, hidden=256, cutoffs=()
)

# Plain DeiT under the names its own training scripts use; the bilateral ones beside them.
MODELS: Mapping[str, FamilyConfig] = (
    {
        f"deit_{'bilateral_' if bilateral else ''}{size}{'_distilled' if distilled else ''}"
        f"_patch16_{image_size}": _deit(size, distilled, bilateral, image_size)
        for bilateral in (False, True)
        for size in _SIZES
        for distilled in (False, True)
        for image_size in (224, 384)
    }
    | {
        "digits_bilateral": _digits(bilateral=True, learned_residual=True),
        "digits_plain": _digits(bilateral=False, learned_residual=False),
        # The two with one of both changes, for comparison.
        "digits_bilateral_standard": _digits(bilateral=True, learned_residual=False),
        "digits_plain_grc": _digits(bilateral=False, learned_residual=True),
    }
    | {
        f"lra_{'bilateral_' if bilateral else ''}{task}": _lra(task, bilateral)
        for bilateral in (False, True)
        for task in _LRA
    }
    | {
        f"wikitext103_{'bilateral_' if bilateral else ''}{size}": _wikitext(bilateral, **sizes)
        for bilateral in (False, True)
        for size, sizes in _WIKITEXT.items()
    }
    | {
        f"segmenter_{'bilateral_' if bilateral else ''}{size}": _segmenter(size, bilateral)
        for bilateral in (False, True)
        for size in _SIZES
    }
    | {"listops_bilateral": _LISTOPS_SMALL, "pydoc_bilateral": _PYDOC}
)


def named(name: str) -> FamilyConfig:
    """Return the configuration of a known model.

    Raises:
        UserError: The name is unknown; the message has the known ones that are like it.
    """
    if name not in MODELS:
        alike = ", ".join(difflib.get_close_matches(name[:80], MODELS, n=5, cutoff=0.4))
        raise UserError(
            f"unknown model name {name[:80]!r}",
            f"{f'Known names like it: {alike}. ' if alike else ''}`bilateral models` lists all.",
        )
    return MODELS[name]
