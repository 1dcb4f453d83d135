"""The image classifier: DeiT (Touvron et al., 2021) with bilateral attention and GRC."""

from __future__ import annotations

from typing import Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Discriminator, Tag, field_validator, model_validator
from torch import Tensor, nn

from bilateral_export.models.attention import BilateralAttention, grid_positions
from bilateral_export.models.block import (
    ACTIVATIONS,
    NORM_EPS,
    Activation,
    Block,
    Mlp,
    PatchEmbed,
    Trunk,
)
from bilateral_export.models.bounds import (
    ClassesOrNone,
    Depth,
    Epsilon,
    Features,
    Heads,
    Pixels,
    Ratio,
    Registers,
    Width,
)
from bilateral_export.models.family import Family, FamilyConfig, ImageTokens
from bilateral_export.models.free_grid import FreeGrid, Resampling
from bilateral_export.preprocessing import ImagePreprocessing, Preprocessing
from bilateral_export.tensors import FEATURES, Array, TensorSpec

Pair = Annotated[
    Annotated[Pixels, Tag("one number")] | Annotated[tuple[Pixels, Pixels], Tag("two numbers")],
    Discriminator(lambda size: "two numbers" if isinstance(size, list | tuple) else "one number"),
]
Output = Literal["logits", "tokens", "cls", "pooled"]

# Names of the free dimensions of a model of several sizes.
HEIGHT, WIDTH = "height", "width"
_LARGEST_RESIZE = 100  # times the crop that is kept


class ImageClassifierConfig(FamilyConfig):
    """Sizes, parts and kernels of an image classifier. The defaults are plain DeiT-tiny at 224.

    Attributes:
        image_size: Side of a square image; else height and width.
        num_classes: 0 where there is no head: the output is then features.
        distilled: A second prefix token with a head of its own, averaged with the first.
        class_token: Whether there is one.
        registers: Prefix tokens after those, which nothing reads from.
        pooling: What the head reads: the class token, the mean of the patches, or both in a row.
        pre_norm: A layer norm before the first block.
        qk_norm: Layer norms of each head's queries and keys.
        final_norm: A layer norm after the last block.
        fc_norm: A layer norm of what was pooled.
        layer_scale: A learned factor per channel of each branch.
        activation: Between the two layers of the MLPs.
        layer_norm_epsilon: Of every layer norm.
        output: What the model returns: logits, all tokens `[B, N, dim]`, the class token, or what
            the head would read.
        position_grid: Patches along the side (or both) of the image the model was trained on, whose
            patch is the unit of the spatial kernel's coordinates; None where that is this image.
        sizes: Heights and widths of the images that a model of several sizes is for, `image_size`
            among them: it takes every height from the smallest to the largest, and every width.
            None: images of `image_size` only.
        table_grid: Rows and columns of the grid that learned positions are of, with `sizes`.
        resampling: How they are interpolated, with `sizes`.
    """

    family: Literal["image-classifier"] = "image-classifier"
    image_size: Pair = 224
    patch_size: Pixels = 16
    channels: Features = 3
    dim: Width = 192
    depth: Depth = 12
    heads: Heads = 3
    mlp_ratio: Ratio = 4.0
    num_classes: ClassesOrNone = 1000
    distilled: bool = False
    class_token: bool = True
    registers: Registers = 0
    pooling: Literal["cls", "mean", "cls_mean"] = "cls"
    pre_norm: bool = False
    qk_norm: bool = False
    final_norm: bool = True
    fc_norm: bool = False
    layer_scale: bool = False
    activation: Activation = "gelu"
    layer_norm_epsilon: Epsilon = NORM_EPS
    output: Output = "logits"
    position_grid: Pair | None = None
    sizes: tuple[tuple[Pixels, Pixels], ...] | None = None
    table_grid: tuple[Pixels, Pixels] | None = None
    resampling: Resampling = "bicubic"

    @field_validator("image_size", "position_grid")
    @classmethod
    def _square_is_one_number(cls, size: Pair | None) -> Pair | None:
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size

    @model_validator(mode="after")
    def _sizes_divide(self) -> ImageClassifierConfig:
        if self.height % self.patch_size or self.width % self.patch_size:
            raise ValueError(
                f"image_size {shown(self.image_size)} is not a multiple of patch_size"
                f" {self.patch_size}"
            )
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if int(self.dim * self.mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio {self.mlp_ratio} of dim {self.dim} leaves no hidden layer")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> ImageClassifierConfig:
        reads_class = self.pooling != "mean" or self.distilled or self.output == "cls"
        if reads_class and not self.class_token:
            raise ValueError("there is no class token to read")
        if self.distilled and (self.pooling != "cls" or self.fc_norm):
            raise ValueError("a distilled model pools its two tokens, and has no fc_norm")
        if (self.output == "logits") != (self.num_classes > 0):
            raise ValueError(
                f"{self.num_classes} classes do not go with the output {self.output!r}"
            )
        return self

    @model_validator(mode="after")
    def _sizes_are_tiled(self) -> ImageClassifierConfig:
        if self.sizes is None:
            return self
        for size in self.sizes:
            if size[0] % self.patch_size or size[1] % self.patch_size:
                raise ValueError(
                    f"size {shown(size)} is not a multiple of patch_size {self.patch_size}"
                )
        if (self.height, self.width) not in self.sizes or len(set(self.sizes)) < 2:
            raise ValueError(f"sizes are {shown(self.image_size)} and at least one other")
        if self.table_grid is None:
            raise ValueError("sizes need the table_grid of the learned positions")
        return self

    @property
    def smallest(self) -> tuple[int, int]:
        """The smallest height and the smallest width that the model takes."""
        sizes = self.sizes or ((self.height, self.width),)
        return min(height for height, _ in sizes), min(width for _, width in sizes)

    @property
    def largest(self) -> tuple[int, int]:
        """The largest height and the largest width that the model takes."""
        sizes = self.sizes or ((self.height, self.width),)
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    @property
    def free_grid(self) -> FreeGrid | None:
        """The grid of a model of several sizes, which only an image fixes; None for one size."""
        if self.table_grid is None or self.sizes is None:
            return None
        unit = self.position_grid or self.grid
        unit = unit if isinstance(unit, tuple) else (unit, unit)
        return FreeGrid(self.prefix, unit, self.table_grid, self.resampling)

    @property
    def table(self) -> int:
        """Rows of a table that is learned per token."""
        rows, columns = self.table_grid or self.grid
        return self.prefix + rows * columns

    @property
    def height(self) -> int:
        """Of the image."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """Of the image."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def prefix(self) -> int:
        """Prefix tokens: the class token, the distillation token and the registers."""
        return self.class_token + self.distilled + self.registers

    @property
    def tokens(self) -> int:
        """Length N of the token sequence."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def pooled_dim(self) -> int:
        """Width of what the head reads."""
        return 2 * self.dim if self.pooling == "cls_mean" else self.dim

    @property
    def image(self) -> ImageTokens:
        """The image it classifies."""
        return ImageTokens(self.height, self.width, self.channels, self.patch_size, self.prefix)

    def resized(self, height: int, width: int) -> ImageClassifierConfig:
        """Return this configuration for images of another size.

        The coordinates of the spatial kernel keep the trained grid's patch as their unit.
        """
        grid = self.position_grid or self.grid
        changed = {"image_size": (height, width), "position_grid": grid}
        return self.model_validate(self.model_dump(exclude_unset=True) | changed)

    def with_output(self, output: str) -> ImageClassifierConfig:
        """Return this configuration for its features: without a head."""
        changed = {"output": output, "num_classes": 0}
        return self.model_validate(self.model_dump(exclude_unset=True) | changed)

    def check_preprocessing(self, how: Preprocessing) -> None:
        """Check that a preprocessing makes images of this size and number of channels."""
        if not isinstance(how, ImagePreprocessing):
            return super().check_preprocessing(how)
        said = [how.channels, how.height, how.width]
        wanted = [self.channels, self.height, self.width]
        if said != wanted:
            raise ValueError(f"the preprocessing makes images {said}, the model takes {wanted}")
        if how.sizes is not None and (
            (how.sizes.smallest, how.sizes.largest) != (self.smallest, self.largest)
            or how.sizes.multiple != self.patch_size
        ):
            raise ValueError(f"the preprocessing makes images of {how.sizes}")
        largest = how.resize if isinstance(how.resize, int) else max(how.resize)
        if largest > _LARGEST_RESIZE * how.height:
            raise ValueError(f"the preprocessing resizes to {largest} pixels to keep {how.height}")
        return None


def shown(size: Pair) -> str:
    """A size for people: one number for a square, else height x width."""
    if isinstance(size, int) or size[0] == size[1]:
        return str(size if isinstance(size, int) else size[0])
    return f"{size[0]}x{size[1]}"


class ImageModel(Family):
    """A model of images, its one input; `backbone` has their size."""

    backbone: ImageClassifierConfig

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's inputs."""
        c = self.backbone
        sides = (HEIGHT, WIDTH) if c.sizes else (c.height, c.width)
        return (TensorSpec("image", "float32", ("batch", c.channels, *sides)),)

    def example(self, batch: int, generator: np.random.Generator, **dims: int) -> dict[str, Array]:
        """Return random valid inputs: standard normal, as normalised images are."""
        c = self.backbone
        shape = (batch, c.channels, dims.get(HEIGHT, c.height), dims.get(WIDTH, c.width))
        return {"image": generator.standard_normal(shape).astype(np.float32)}

    def corners(self) -> tuple[dict[str, int], ...]:
        """Return the largest, the tallest that is narrow, the smallest, the others, its own."""
        c = self.backbone
        if not c.sizes:
            return super().corners()
        own = (c.height, c.width)
        ends = [c.largest, (c.largest[0], c.smallest[1]), c.smallest, *c.sizes]
        sizes = [*dict.fromkeys(size for size in ends if size != own), own]
        return tuple({HEIGHT: height, WIDTH: width} for height, width in sizes)


class ImageEncoder(nn.Module):
    """A ViT without its heads: images `[B, C, H, W]` in, tokens `[B, N, dim]` out.

    Parameters carry timm's names: with plain attention and the standard residual, the weights of a
    timm or DeiT checkpoint load unchanged. Every prefix token has a row in the position table;
    where another library's have none, it is zero (checkpoint/homes/).
    """

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.layer_norm_epsilon
        self.patch_embed = PatchEmbed(config.channels, config.patch_size, dim)
        counts = {
            "cls_token": int(config.class_token),
            "dist_token": int(config.distilled),
            "reg_token": config.registers,
        }
        self.prefix_names = [name for name, count in counts.items() if count]
        for name in self.prefix_names:
            setattr(self, name, nn.Parameter(torch.zeros(1, counts[name], dim)))
        self.pos_embed = nn.Parameter(torch.randn(1, config.table, dim) * 0.02)
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if config.pre_norm else nn.Identity()
        self.blocks = Trunk(
            Block(
                BilateralAttention(
                    dim,
                    config.heads,
                    config.table,
                    config.prefix,
                    config.attention,
                    qk_norm_eps=eps if config.qk_norm else None,
                ),
                Mlp(dim, int(dim * config.mlp_ratio), ACTIVATIONS[config.activation]),
                config.residual,
                eps,
                config.layer_scale,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if config.final_norm else nn.Identity()
        self.grid = config.free_grid
        if self.grid is not None:
            return
        positions = grid_positions(*config.grid, config.prefix)
        if config.position_grid is not None:
            trained = config.position_grid
            rows, columns = trained if isinstance(trained, tuple) else (trained, trained)
            positions *= torch.tensor([rows / config.grid[0], columns / config.grid[1]])
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def encode(self, image: Tensor) -> Tensor:
        """Return the tokens `[B, N, dim]` of images `[B, C, H, W]`, in the weights' dtype."""
        maps = self.patch_embed.proj(image.to(self.pos_embed.dtype))
        patches = maps.flatten(2).transpose(1, 2)
        prefix = [getattr(self, name).expand(image.shape[0], -1, -1) for name in self.prefix_names]
        if self.grid is None:
            x0 = self.norm_pre(torch.cat([*prefix, patches], dim=1) + self.pos_embed)
            return cast(Tensor, self.norm(self.blocks(x0, self.positions)))
        grid = self.grid.at(maps.shape[2], maps.shape[3], self.pos_embed)
        kept, moved = grid.split(self.pos_embed)
        placed = [torch.cat(prefix, dim=1) + kept] if prefix else []
        x0 = self.norm_pre(torch.cat([*placed, patches + moved], dim=1))
        return cast(Tensor, self.norm(self.blocks(x0, grid.positions, None, grid.resample)))


class ImageClassifier(ImageEncoder, ImageModel):
    """Images `[B, C, H, W]` in, logits `[B, classes]` or features out."""

    config: ImageClassifierConfig

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        self.config = self.backbone = config
        width = config.pooled_dim
        eps = config.layer_norm_epsilon
        keeps_norm = config.fc_norm and config.output in ("logits", "pooled")
        self.fc_norm = nn.LayerNorm(width, eps=eps) if keeps_norm else nn.Identity()
        if config.num_classes:
            self.head = nn.Linear(width, config.num_classes)
            if config.distilled:
                self.head_dist = nn.Linear(width, config.num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of preprocessed images, or their features.

        Args:
            image: `[B, C, H, W]`, float32 or wider; computed in the weights' dtype.

        Returns:
            Logits `[B, classes]`, or features `[B, N, dim]` or `[B, dim]` as the configuration's
            `output` says, in the image's dtype. A distilled model averages its two heads, as DeiT's
            evaluation does.
        """
        x = self.encode(image)
        match self.config.output:
            case "tokens":
                output = x
            case "cls":
                output = x[:, 0]
            case "pooled":
                output = self.fc_norm(self.pool(x))
            case "logits":
                output = self.head(self.fc_norm(self.pool(x)))
                if self.config.distilled:
                    output = (output + self.head_dist(x[:, 1])) / 2
        return output.to(image.dtype)

    def pool(self, x: Tensor) -> Tensor:
        """Return what the head reads, `[B, dim]` (twice as wide where it is two vectors)."""
        if self.config.pooling == "cls":
            return x[:, 0]
        patches = x[:, self.config.prefix :]
        # Hundreds of tokens in 16 bits are summed in 32.
        mean = patches.mean(1) if x.dtype == torch.float64 else patches.float().mean(1).to(x.dtype)
        return mean if self.config.pooling == "mean" else torch.cat([x[:, 0], mean], dim=1)

    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return the exported graph's outputs."""
        c = self.config
        shapes: dict[Output, tuple[int | str, ...]] = {
            "logits": ("batch", c.num_classes),
            "tokens": ("batch", "tokens" if c.sizes else c.tokens, c.dim),
            "cls": ("batch", c.dim),
            "pooled": ("batch", c.pooled_dim),
        }
        name = "logits" if c.output == "logits" else FEATURES
        return (TensorSpec(name, "float32", shapes[c.output]),)
