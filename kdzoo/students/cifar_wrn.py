"""The wide ResNets of the distillation literature for CIFAR: pre-activation blocks, depth 6 n + 4, width factor k.

For 100 classes: WRN-16-2 has 703,284 parameters, WRN-40-2 2,255,156. Source: arXiv 1605.07146; no dropout.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import relu

from kdzoo.students.timm_interface import StagedNetwork, create, initialise, record


class PreactivationBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions; a shortcut of other shape starts after the first."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        out = relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(relu(self.bn2(self.conv1(out)))) + shortcut


class CIFARWideResNet(StagedNetwork):
    """A wide ResNet for CIFAR.

    Args:
        widths: channels of the stem and of the three stages.
        depths: blocks of each stage.
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        global_pool: a pool type of timm.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        stages: dict[str, nn.Module] = {}
        for number, (before, width, depth) in enumerate(zip(widths, widths[1:], depths), start=1):
            first = PreactivationBlock(before, width, stride=1 if number == 1 else 2)
            stages[f"block{number}"] = nn.Sequential(
                first, *(PreactivationBlock(width, width, 1) for _ in range(depth - 1))
            )
        self.add_stages_and_head(stages, "conv1", widths, num_classes, global_pool)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, widths[0], H, W]."""
        return self.conv1(x)

    def finish(self, x: Tensor) -> Tensor:
        """The last normalisation and ReLU."""
        return relu(self.bn1(x))


def _register(name: str, blocks: int, factor: int) -> None:
    widths = (16, 16 * factor, 32 * factor, 64 * factor)

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return create(CIFARWideResNet, name, pretrained, options, widths=widths, depths=(blocks,) * 3)

    entry.__name__ = name
    entry.__module__ = __name__
    entry.__doc__ = f"{name}: {blocks} blocks in each stage of {widths[1:]} channels."
    register_model(entry)


SHAPES = ((16, 1), (16, 2), (40, 1), (40, 2), (16, 10), (28, 20))  # depth, factor
NETWORKS = {f"cifar_wrn_{depth}_{factor}": ((depth - 4) // 6, factor) for depth, factor in SHAPES}
default_cfgs = generate_default_cfgs({name: record((3, 32, 32), "conv1") for name in NETWORKS})
for _name, (_blocks, _factor) in NETWORKS.items():
    _register(_name, _blocks, _factor)
