"""The CIFAR ResNets of the distillation literature: 3 stages at 32, 16 and 8 pixels, depth 6 n + 2.

`x4` networks have stages of 64, 128 and 256 channels after a stem of 32. Shortcuts that change shape are 1x1
convolutions, as in the code bases whose tables the field compares with (for 100 classes: ResNet20 278,324 parameters,
ResNet56 861,620, ResNet8x4 1,233,540, ResNet32x4 7,433,860). `cifar_resnet_1_3_5` has so many blocks in each stage: the
64 of 1, 3, 5 or 7 blocks are a search space. Source: arXiv 1512.03385, section 4.2.
"""

from itertools import product
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import relu

from kdzoo.students.timm_interface import StagedNetwork, create, initialise, record

WIDTHS, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""
        out = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(out)) + self.downsample(x))


class CIFARResNet(StagedNetwork):
    """A CIFAR ResNet.

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
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages: dict[str, nn.Module] = {}
        for number, (before, width, depth) in enumerate(zip(widths, widths[1:], depths), start=1):
            first = BasicBlock(before, width, stride=1 if number == 1 else 2)
            stages[f"layer{number}"] = nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(depth - 1)))
        self.add_stages_and_head(stages, "bn1", widths, num_classes, global_pool)
        initialise(self)

    def stem(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] to [B, widths[0], H, W]."""
        return relu(self.bn1(self.conv1(x)))


DEPTHS = {8: 1, 14: 2, 20: 3, 32: 5, 44: 7, 56: 9, 110: 18}  # layers -> blocks of a stage


def _register(name: str, depths: tuple[int, ...], widths: tuple[int, ...]) -> None:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return create(CIFARResNet, name, pretrained, options, widths=widths, depths=depths)

    entry.__name__ = name
    entry.__module__ = __name__
    entry.__doc__ = f"{name}: {depths} blocks in stages of {widths[1:]} channels."
    register_model(entry)


Shape = tuple[tuple[int, ...], tuple[int, ...]]  # depths, widths
NETWORKS: dict[str, Shape] = {f"cifar_resnet{layers}": ((blocks,) * 3, WIDTHS) for layers, blocks in DEPTHS.items()}
NETWORKS |= {f"cifar_resnet{layers}x4": ((DEPTHS[layers],) * 3, WIDE) for layers in (8, 32)}
SEARCHED: dict[str, Shape] = {
    "cifar_resnet_" + "_".join(map(str, depths)): (depths, WIDTHS) for depths in product((1, 3, 5, 7), repeat=3)
}
NETWORKS |= SEARCHED
default_cfgs = generate_default_cfgs({name: record((3, 32, 32), "conv1") for name in NETWORKS})
for _name, (_depths, _widths) in NETWORKS.items():
    _register(_name, _depths, _widths)
