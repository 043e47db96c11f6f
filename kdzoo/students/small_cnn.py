"""kdzoo's own networks for images of about 28 pixels: a small student, its teacher, and others between.

A 3x3 stem that halves the image, then stages of 3x3 convolutions with batch normalisation; every stage but the first
halves it again.
"""

from itertools import product
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

from kdzoo.students.timm_interface import StagedNetwork, create, record


def conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution and its batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class PlainBlock(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = conv_norm(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        return relu(self.conv(x))


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut without parameters: averaged in space, padded with zeros in channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels, stride)
        self.conv2 = conv_norm(out_channels, out_channels)
        self.stride, self.grow = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        shortcut = avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return relu(self.conv2(relu(self.conv1(x))) + pad(shortcut, (0, 0, 0, 0, 0, self.grow)))


class SmallCNN(StagedNetwork):
    """Stem, stages, head.

    Args:
        widths: channels of the stem and of each stage.
        depths: blocks of each stage.
        residual: whether blocks have shortcuts.
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        global_pool: a pool type of timm.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        residual: bool = False,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        block = ResidualBlock if residual else PlainBlock
        self.conv = conv_norm(in_chans, widths[0], stride=2)
        stages: dict[str, nn.Module] = {}
        for number, (before, width, depth) in enumerate(zip(widths, widths[1:], depths), start=1):
            first = block(before, width, stride=1 if number == 1 else 2)
            stages[f"stage{number}"] = nn.Sequential(first, *(block(width, width, stride=1) for _ in range(depth - 1)))
        self.add_stages_and_head(stages, "conv", widths, num_classes, global_pool, stem_stride=2)

    def stem(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, widths[0], H / 2, W / 2]."""
        return relu(self.conv(x))


# A search space: the widths of three stages, and the depth of the last.
SEARCHED = {
    f"cnn_{first}_{second}_{third}x{deep}": ((first, first, second, third), (1, 1, deep))
    for first, second, third, deep in product((4, 8, 16), (6, 12, 24), (8, 20, 48), (1, 2))
}
default_cfgs = generate_default_cfgs(
    {name: record((1, 28, 28), "conv.0") for name in ("cnn_14k", "cnn_46k", "cnn_168k", *SEARCHED)}
)


def _register(name: str, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return create(SmallCNN, name, pretrained, options, widths=widths, depths=depths)

    entry.__name__ = name
    entry.__module__ = __name__
    entry.__doc__ = f"{name}: {depths} blocks in stages of {widths[1:]} channels."
    register_model(entry)


for _name, (_widths, _depths) in SEARCHED.items():
    _register(_name, _widths, _depths)


@register_model
def cnn_14k(pretrained: bool = False, **options: Any) -> nn.Module:
    """14k parameters (1 channel, 10 classes): a student."""
    return create(SmallCNN, "cnn_14k", pretrained, options, widths=(8, 16, 24, 40), depths=(1, 1, 1))


@register_model
def cnn_46k(pretrained: bool = False, **options: Any) -> nn.Module:
    """46k parameters (1 channel, 10 classes): between the two others."""
    return create(SmallCNN, "cnn_46k", pretrained, options, widths=(16, 24, 48, 72), depths=(1, 1, 1))


@register_model
def cnn_168k(pretrained: bool = False, **options: Any) -> nn.Module:
    """168k parameters (1 channel, 10 classes): the teacher of `cnn_14k`."""
    return create(SmallCNN, "cnn_168k", pretrained, options, widths=(24, 24, 48, 96), depths=(1, 1, 1), residual=True)
