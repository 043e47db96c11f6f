"""Exit branches: from a feature in the middle of a student to class logits, as One-for-All has them."""

import math
from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn


def map_exit(channels: int, stages_left: int, width: int, classes: int) -> nn.Sequential:
    """The exit of a convolutional stage: one down-sampling block for each stage that is left, pooling, a linear layer.

    Args:
        channels: Of the stage.
        stages_left: How many stages follow; with none a 1x1 convolution takes the blocks' place.
        width: Channels before the linear layer.
        classes: Of the task.
    """
    layers: list[nn.Module] = []
    for number in range(stages_left):
        after = width if number == stages_left - 1 else 2 * channels
        layers.append(separable(channels, after))
        channels = after
    if not stages_left:
        layers.append(nn.Conv2d(channels, width, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def separable(channels: int, after: int) -> nn.Sequential:
    """Two depthwise-separable convolutions, the first of which halves height and width."""
    layers: list[nn.Module] = []
    for stride, width in (2, channels), (1, after):
        layers += [
            nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class TokenExit(nn.Module):
    """The exit of a transformer or mixer block: merging of patches to a grid of 7, transformer blocks, a linear layer.

    Args:
        width: Of the tokens.
        grid: Height of the grid of patches.
        blocks: How many transformer blocks.
        classes: Of the task.
    """

    def __init__(self, width: int, grid: int, blocks: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(max(0, int(math.log2(max(1.0, grid / 7))))):
            layers += [nn.Conv2d(width, width, 2, stride=2), nn.GELU()]
        self.merge = nn.Sequential(*layers)
        self.blocks = nn.Sequential(*(Block(width, num_heads=4) for _ in range(blocks)))
        self.head = nn.Linear(width, classes)

    def forward(self, feature: Any) -> Tensor:
        """Tokens as a map [B, width, H, W] to logits [B, classes]."""
        tokens = self.merge(feature).flatten(2).mT  # [B, N, width]
        return self.head(self.blocks(tokens).mean(1))
