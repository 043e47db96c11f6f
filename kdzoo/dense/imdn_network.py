"""The networks of super-resolution: IMDN, and a plain stack of convolutions between the same two ends.

Both map [B, 3, H, W] in [0, 1] to [B, 3, s H, s W], and both can be run tile by tile (see `kdzoo.dense.tiling`): they
say how far a pixel sees (`halo`), how many attentions look at the whole image (`attentions`) and what a pass holds
(`floats_per_pixel`).
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, relu

from kdzoo.errors import UserError

EPSILON = 1e-10  # under the root of the contrast: without it the gradient of a constant channel is NaN
SLOPE = 0.05  # of the leaky ReLU below zero


def conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2)


def up_sampler(features: int, scale: int) -> nn.Sequential:
    """Sub-pixel convolution: [B, features, H, W] to [B, 3, scale H, scale W]."""
    return nn.Sequential(conv(features, 3 * scale**2), nn.PixelShuffle(scale))


def contrast(x: Tensor) -> Tensor:
    """Standard deviation plus mean of each channel of each image: [B, C, H, W] to [B, C, 1, 1], float32."""
    x = x.float()
    variance = x.var((2, 3), correction=0, keepdim=True)
    return (variance + EPSILON).sqrt() + x.mean((2, 3), keepdim=True)


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention: every channel is weighted by what all channels' contrasts say.

    Args:
        channels: Channels of the input, `reduction` or more.
        reduction: How much narrower the layer between is.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = conv(channels, channels // reduction, 1)
        self.excite = conv(channels // reduction, channels, 1)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Weight the channels of [B, C, H, W] by their own contrasts, or by `given` ones [B or 1, C, 1, 1]."""
        contrasts = contrast(x) if given is None else given
        return x * self.excite(relu(self.squeeze(contrasts))).sigmoid()


class IMDB(nn.Module):
    """Information multi-distillation block: each step keeps a quarter of the channels and refines the rest.

    Args:
        features: Channels of input and output.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.kept = features // 4
        self.rest = features - self.kept
        self.steps = nn.ModuleList([conv(features, features), conv(self.rest, features), conv(self.rest, features)])
        self.last = conv(self.rest, self.kept)
        self.attention = ContrastAttention(4 * self.kept)
        self.fuse = conv(4 * self.kept, features, 1)

    def distil(self, x: Tensor) -> Tensor:
        """The four kept parts, side by side: [B, features, H, W] to [B, 4 kept, H, W]."""
        parts = []
        for step in self.steps:
            part, x = leaky_relu(step(x), SLOPE).split([self.kept, self.rest], dim=1)
            parts.append(part)
        return torch.cat([*parts, self.last(x)], dim=1)  # no activation after the last

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """[B, features, H, W] to the same; `given`: contrasts for the attention, see there."""
        return self.fuse(self.attention(self.distil(x), given)) + x


class IMDNNetwork(nn.Module):
    """Information Multi-distillation Network.

    Args:
        scale: s, how many times larger the output is.
        features: Channels, 16 or more.
        blocks: Number of distillation blocks.
    """

    def __init__(self, scale: int = 2, features: int = 64, blocks: int = 6) -> None:
        super().__init__()
        if features < 16 or blocks < 1:
            raise UserError(f"IMDN: features={features}, blocks={blocks} are too few: take 16 and 1 or more.")
        self.scale, self.features = scale, features
        self.head = conv(3, features)
        self.blocks = nn.ModuleList(IMDB(features) for _ in range(blocks))
        self.fuse = conv(features * blocks, features, 1)
        self.smooth = conv(features, features)
        self.up_sampler = up_sampler(features, scale)

    def forward(self, image: Tensor, given: Sequence[Tensor] = ()) -> Tensor:
        """[B, 3, H, W] to [B, 3, s H, s W]; `given`: contrasts for the first blocks, [B or 1, C, 1, 1] each."""
        shallow = x = self.head(image)  # [B, features, H, W]
        outputs = []
        for block, contrasts in zip_longest(self.blocks, given):
            x = block(x, contrasts)
            outputs.append(x)
        deep = self.smooth(leaky_relu(self.fuse(torch.cat(outputs, dim=1)), SLOPE))
        return self.up_sampler(deep + shallow)

    def attended(self, image: Tensor, given: Sequence[Tensor]) -> Tensor:
        """What the attention of block number `len(given)` takes its contrasts of, [B, C, H, W]."""
        x = self.head(image)
        for block, contrasts in zip(self.blocks, given):
            x = block(x, contrasts)
        distil: IMDB = self.blocks[len(given)]  # type: ignore[assignment]
        return distil.distil(x)

    @property
    def attentions(self) -> int:
        """How many channel attentions look at the whole image."""
        return len(self.blocks)

    @property
    def halo(self) -> int:
        """How many pixels of the input around it an output pixel depends on, contrasts aside."""
        return 4 * len(self.blocks) + 3  # four 3x3 convolutions a block; head, smooth, up-sampler

    @property
    def floats_per_pixel(self) -> int:
        """The most numbers that a pass without gradient holds per pixel of its input: all blocks' outputs twice."""
        return self.features * (2 * len(self.blocks) + 8) + 9 * self.scale**2


class PlainNetwork(nn.Module):
    """IMDN's two ends and its long skip, with a plain stack of convolutions in place of the blocks.

    Args:
        scale: s, how many times larger the output is.
        features: Channels.
        layers: Number of 3x3 convolutions between the ends; 0: bicubic interpolation alone, without parameters.
    """

    attentions = 0

    def __init__(self, scale: int = 2, features: int = 64, layers: int = 19) -> None:
        super().__init__()
        if features < 1 or layers < 0:
            raise UserError(f"PlainSR: features={features}, layers={layers} must be 1 and 0 or more.")
        self.scale, self.features, self.layers = scale, features, layers
        if layers:
            self.head = conv(3, features)
            self.body = nn.ModuleList(conv(features, features) for _ in range(layers))
            self.up_sampler = up_sampler(features, scale)

    def forward(self, image: Tensor, given: Sequence[Tensor] = ()) -> Tensor:
        """[B, 3, H, W] to [B, 3, s H, s W]; there is nothing to give contrasts to."""
        if not self.layers:
            return bicubic(image, self.scale)
        shallow = x = self.head(image)  # [B, features, H, W]
        for layer in self.body[:-1]:
            x = leaky_relu(layer(x), SLOPE)
        return self.up_sampler(self.body[-1](x) + shallow)

    @property
    def halo(self) -> int:
        """How many pixels of the input around it an output pixel depends on."""
        return self.layers + 2

    @property
    def floats_per_pixel(self) -> int:
        """The most numbers that a pass without gradient holds per pixel of its input."""
        return 6 * self.features + 9 * self.scale**2


def bicubic(image: Tensor, scale: int) -> Tensor:
    """Interpolate [B, C, H, W] to [B, C, s H, s W] with the kernel of Matlab's and PIL's bicubic (a = -1/2)."""
    return interpolate(image, scale_factor=scale, mode="bicubic", antialias=True)  # without it, torch takes a = -3/4
