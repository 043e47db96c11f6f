"""Segmentation networks: a small U-Net of our own, and the light heads of the field on any encoder of timm.

Names: `unet_110k` and `unet_440k` for images of about 64 pixels; `deeplabv3_ENCODER` and `pspnet_ENCODER` for any timm
encoder that can keep an output stride of 8, as in `deeplabv3_resnet18`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from kdzoo.errors import UserError, near
from kdzoo.students.build import read_state

STRIDE = 8  # of the encoders under the heads


def conv(in_channels: int, out_channels: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the map's size (but for the stride), its batch normalisation, ReLU."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, size, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resized(x: Tensor, like: Tensor) -> Tensor:
    """[B, C, h, w] interpolated to the height and width of `like`."""
    return interpolate(x, like.shape[2:], mode="bilinear")


class UNet(nn.Module):
    """A stem that quarters the image's sides, levels that halve them again, and back with the levels' own maps beside.

    Args:
        widths: channels of each level.
        in_channels: channels of the images.
        classes: channels of the scores.
    """

    any_size = True

    def __init__(self, widths: Sequence[int], in_channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(in_channels, widths[0], stride=2), conv(widths[0], widths[0], stride=2))
        befores = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(conv(before, width, stride=1 if level == 0 else 2), conv(width, width))
            for level, (before, width) in enumerate(zip(befores, widths))
        )
        self.up = nn.ModuleList(conv(low + high, high) for high, low in zip(widths[-2::-1], widths[:0:-1]))
        self.classifier = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, in_channels, H, W] to scores [B, classes, H / 4, W / 4], and no auxiliary scores."""
        x, maps = self.stem(x), []
        for level in self.down:
            x = level(x)
            maps.append(x)
        for step, beside in zip(self.up, maps[-2::-1]):
            x = step(torch.cat([resized(x, beside), beside], dim=1))
        return self.classifier(x), None


class AtrousPyramid(nn.Module):
    """DeepLabV3's head: convolutions with holes of three sizes and the mean of the map, side by side.

    Source: arXiv 1706.05587. Widths as in the comparisons of the field: 128 on 512 channels, 256 on 2048.
    """

    any_size = True

    def __init__(self, channels: int, classes: int, rates: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        width = 128 if channels <= 512 else 256
        self.branches = nn.ModuleList(
            [conv(channels, width, 1), *(conv(channels, width, dilation=rate) for rate in rates)]
        )
        self.pooled = conv(channels, width, 1)
        self.project = nn.Sequential(conv(width * (len(rates) + 2), width, 1), nn.Dropout(0.5))
        self.block = nn.Sequential(conv(width, width), nn.Dropout(0.1), nn.Conv2d(width, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] to scores [B, classes, h, w]."""
        mean = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.block(self.project(torch.cat([*(branch(x) for branch in self.branches), mean], dim=1)))


class PyramidPooling(nn.Module):
    """PSPNet's head: means over grids of 1, 2, 3 and 6 cells a side beside the map. Source: arXiv 1612.01105."""

    any_size = False  # pooling to a given number of cells has no ONNX for a size that is not known

    def __init__(self, channels: int, classes: int, cells: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        width = 128 if channels <= 512 else 256
        self.cells = cells
        self.pooled = nn.ModuleList(conv(channels, channels // 4, 1) for _ in cells)
        self.block = nn.Sequential(
            conv(channels + len(cells) * (channels // 4), width), nn.Dropout(0.1), nn.Conv2d(width, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] to scores [B, classes, h, w]."""
        means = [resized(step(adaptive_avg_pool2d(x, side)), x) for side, step in zip(self.cells, self.pooled)]
        return self.block(torch.cat([x, *means], dim=1))


class HeadOnEncoder(nn.Module):
    """An encoder of timm, a head on its last map, and an auxiliary one on the map before.

    Args:
        encoder: timm's name.
        head: the class of the head.
        in_channels: channels of the images.
        classes: channels of the scores.
        weights: of the encoder: None (random), "pretrained" (timm's download), or a file with a state dict.
    """

    def __init__(
        self,
        encoder: str,
        head: type[AtrousPyramid] | type[PyramidPooling],
        in_channels: int,
        classes: int,
        weights: str | None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"pretrained": weights is not None}
        if weights not in (None, "pretrained"):
            options["pretrained_cfg_overlay"] = {"state_dict": read_state(Path(str(weights)))}
        try:
            body: Any = timm.create_model(
                encoder, features_only=True, out_indices=(-2, -1), output_stride=STRIDE, in_chans=in_channels, **options
            )
        except Exception as error:  # timm has no class of its own for what may go wrong
            reason = str(error).strip().partition("\n")[0][:160]
            raise UserError(f"'{encoder}' cannot be the encoder of a segmentation network ({reason}).") from error
        body.pretrained_cfg.pop("state_dict", None)  # timm keeps what it was given
        self.encoder: nn.Module = body
        before, last = body.feature_info.channels()
        self.head = head(last, classes)
        self.auxiliary = nn.Sequential(conv(before, before // 4), nn.Dropout(0.1), nn.Conv2d(before // 4, classes, 1))
        self.any_size = head.any_size

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, in_channels, H, W] to scores [B, classes, H / 8, W / 8], and the auxiliary ones while it is trained."""
        before, last = self.encoder(x)
        return self.head(last), self.auxiliary(before) if self.training else None


class SegmentationNetwork(nn.Module):
    """A network that takes images in [0, 1] and normalises them itself.

    Args:
        architecture: its name, see the module.
        network: images to scores at its own resolution, and auxiliary scores or None.
        mean: of the input's channels, in the [0, 1] scale.
        std: of the input's channels, positive.
        label_channels: how many of the last channels are no image's but code its labels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, architecture: str, network: nn.Module, mean: Sequence[float], std: Sequence[float], label_channels: int
    ) -> None:
        super().__init__()
        self.architecture, self.network, self.label_channels = architecture, network, label_channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    @property
    def any_size(self) -> bool:
        """Whether the exported network takes images of any size."""
        return bool(self.network.any_size)

    def scores(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [B, C, H, W] to scores [B, classes, h, w], and auxiliary scores or None; h and w are the network's."""
        normalised = (image - self.mean) / self.std
        return self.network(normalised.to(next(self.network.parameters()).dtype))

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, classes, H, W]."""
        return resized(self.scores(image)[0], image)

    def features(self, image: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """The one tap there is: `scores`."""
        assert list(taps) == ["scores"]
        return {"scores": self.scores(image)[0]}


HEADS: dict[str, type[AtrousPyramid] | type[PyramidPooling]] = {"deeplabv3": AtrousPyramid, "pspnet": PyramidPooling}
UNETS = {"unet_110k": (16, 32, 64), "unet_440k": (32, 64, 128)}


def check_name(name: str) -> None:
    """Raise a `UserError` if there is no segmentation network of this name."""
    head, _, encoder = name.partition("_")
    if name not in UNETS and not (head in HEADS and timm.is_model(encoder)):
        known = [*UNETS, *(f"{head}_{each}" for head in HEADS for each in timm.list_models())]
        raise UserError(
            f"no segmentation network named '{name}'.{near(name, known)} Known: {', '.join(UNETS)}, "
            f"and {' or '.join(HEADS)} with an encoder of timm, as in deeplabv3_resnet18."
        )


def build_segmenter(
    name: str, spec: dict[str, Any], label_channels: int = 0, weights: str | None = None
) -> SegmentationNetwork:
    """Build a segmentation network for the data of `spec`.

    Args:
        name: see the module.
        spec: the data: `classes`, `channels`, `mean` and `std`.
        label_channels: further input channels, which code the labels. They are scaled as the image's channels are on
            average, and not shifted.
        weights: of the encoder: None (random), "pretrained" (timm's download), or a file with a state dict.

    Raises:
        UserError: the name is unknown, or the weights are missing or do not fit.
    """
    check_name(name)
    channels, classes = spec["channels"] + label_channels, spec["classes"]
    head, _, encoder = name.partition("_")
    network: nn.Module
    if name in UNETS:
        if weights:
            raise UserError(f"'{name}' has no encoder of timm, so there are no weights='{weights}' for it: leave them.")
        network = UNet(UNETS[name], channels, classes)
    else:
        network = HeadOnEncoder(encoder, HEADS[head], channels, classes, weights)
    std = [*spec["std"], *[sum(spec["std"]) / len(spec["std"])] * label_channels]
    return SegmentationNetwork(name, network, [*spec["mean"], *[0.0] * label_channels], std, label_channels)
