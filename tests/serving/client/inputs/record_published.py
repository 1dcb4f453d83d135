"""Record what torchvision and transformers make of real photographs, in `published.npz`.

They are no dependency of this project. Where the values are to be recorded again:

    pip install --no-deps --target REFERENCES torchvision==0.28.0 transformers==5.24.0 \
        huggingface_hub tokenizers regex filelock fsspec httpx2 httpcore2 h11 anyio sniffio idna \
        certifi truststore pyyaml tqdm safetensors
    PYTHONPATH=.:REFERENCES python tests/serving/client/inputs/record_published.py
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tests.builders.photos import photo_files

POINTS = 14  # of each side, among them the first and the last pixel
HERE = Path(__file__).parent


def main() -> None:
    """Write the file."""
    # What torchvision's compiled part would define; nothing here calls it.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
    import transformers
    from torchvision.models import ViT_B_16_Weights
    from torchvision.transforms import v2
    from transformers import (
        BitImageProcessor,
        BitImageProcessorPil,
        ViTImageProcessor,
        ViTImageProcessorPil,
    )
    from transformers.image_utils import load_image

    def opened(data: bytes) -> Image.Image:
        """As ImageFolder's loader."""
        return Image.open(io.BytesIO(data)).convert("RGB")

    def with_processor(processor: object) -> Callable[[bytes], np.ndarray]:
        def run(data: bytes) -> np.ndarray:
            image = load_image(Image.open(io.BytesIO(data)))
            made = processor(image, return_tensors="np")  # type: ignore[operator]
            return np.asarray(made["pixel_values"][0])

        return run

    bicubic = v2.InterpolationMode.BICUBIC
    deit = v2.Compose([v2.Resize(256, bicubic), v2.CenterCrop(224), v2.PILToTensor()])
    preset = ViT_B_16_Weights.IMAGENET1K_V1.transforms()
    dino = {
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": Image.Resampling.BICUBIC,
    }
    raw = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": True}
    vit = {"size": {"height": 224, "width": 224}, "resample": Image.Resampling.BILINEAR}
    recipes: dict[str, Callable[[bytes], np.ndarray]] = {
        "torchvision DeiT": lambda data: deit(opened(data)).numpy(),
        "torchvision vit_b_16": lambda data: np.rint(
            (
                preset(opened(data)).numpy() * np.array(preset.std)[:, None, None]
                + np.array(preset.mean)[:, None, None]
            )
            * 255
        ),
        "transformers DINOv2, Pillow": with_processor(BitImageProcessorPil(**dino, **raw)),
        "transformers DINOv2, torchvision": with_processor(BitImageProcessor(**dino, **raw)),
        "transformers ViT, Pillow": with_processor(ViTImageProcessorPil(**vit, **raw)),
        "transformers ViT, torchvision": with_processor(ViTImageProcessor(**vit, **raw)),
    }
    found = {}
    for kind, data in photo_files().items():
        for recipe, run in recipes.items():
            values = run(data)
            assert values.shape == (3, 224, 224), (kind, recipe, values.shape)
            places = np.linspace(0, 223, POINTS).round().astype(int)
            found[f"{recipe}/{kind}"] = np.rint(values[:, places][:, :, places]).astype(np.uint8)
    versions = {
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
    }
    np.savez_compressed(HERE / "published.npz", versions=json.dumps(versions), **found)


if __name__ == "__main__":
    main()
