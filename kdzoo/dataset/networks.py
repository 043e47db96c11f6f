"""The networks of dataset distillation: the ConvNet that everybody compares with, and a pool of other architectures.

All take normalised images, float [B, C, H, W], and have `features` (what the head sees, flattened) and `head`. Batch
normalisation is replaced by instance normalisation, written as a group norm with a group per channel: the statistics
of a batch of ten images are those of no data set. Weights start as torch starts them.
Source: the architectures of arXiv 2006.05929 (gradient matching) and its authors' code.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchvision.models import resnet18

from kdzoo.errors import UserError, near

SMALLEST_MAP = 2  # pixels: instance normalisation of a single pixel leaves nothing


class Network(nn.Module):
    """A body that ends in a flat vector, and a linear head.

    Args:
        body: [B, C, H, W] to [B, D].
        spec: The spec of the data: `channels`, `image_size`, `classes`.
    """

    def __init__(self, body: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.body = body
        with torch.no_grad():
            width = body(torch.zeros(1, spec["channels"], *spec["image_size"])).shape[1]
        self.head = nn.Linear(width, spec["classes"])

    def features(self, x: Tensor) -> Tensor:
        """The penultimate features [B, D] of normalised images [B, C, H, W]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of normalised images [B, C, H, W]."""
        return self.head(self.features(x))


def make(name: str, spec: dict[str, Any], width: int = 128, depth: int | None = None) -> Network:
    """Make a network with fresh weights, drawn from torch's generator.

    Args:
        name: A key of `NETWORKS`.
        spec: The spec of the data: `channels`, `image_size` (H, W), `classes`.
        width: Channels of a ConvNet; the other architectures have none to choose.
        depth: Blocks of a ConvNet; None: so many that the last map has four pixels a side (3 for 28 and 32 pixels, 4
            for 64, 5 for 128).

    Raises:
        UserError: There is no such network, or the images are too small for it.
    """
    if name not in NETWORKS:
        raise UserError(f"There is no network '{name}' for dataset distillation.{near(name, NETWORKS)}")
    if width < 1 or (depth is not None and depth < 1):
        raise UserError(f"A ConvNet of width {width} and depth {depth} has no layers: give 1 or more.")
    return Network(NETWORKS[name](spec["channels"], tuple(spec["image_size"]), width, depth), spec)


class Halve(nn.Module):
    """Average pooling by 2, without an odd last row or column.

    On a CPU as sums of slices, which with their gradients take half of the time of torch's pooling.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H // 2, W // 2]."""
        if x.device.type != "cpu":
            return avg_pool2d(x, 2)
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        upper, lower = x[..., : 2 * height, : 2 * width].unflatten(-2, (height, 2)).unbind(-2)
        left, right = (upper + lower).unflatten(-1, (width, 2)).unbind(-1)
        return (left + right) * 0.25


def instance_norm(channels: int) -> nn.GroupNorm:
    """Instance normalisation with scale and shift."""
    return nn.GroupNorm(channels, channels)


def first_padding(size: tuple[int, int]) -> int:
    """Padding of a first 3x3 convolution: images of 28 pixels become maps of 32."""
    return 3 if size == (28, 28) else 1


def convnet(channels: int, size: tuple[int, int], width: int, depth: int | None) -> nn.Sequential:
    """`depth` times 3x3 convolution, instance norm, ReLU, average pooling by 2."""
    padded = min(size) + 2 * (first_padding(size) - 1)
    if depth is None:
        depth = max(1, round(math.log2(padded / 4)))
    if padded >> depth < SMALLEST_MAP:
        raise UserError(
            f"A ConvNet of depth {depth} shrinks images of {size[0]}x{size[1]} pixels to less than 2x2, where instance "
            f"normalisation leaves nothing to learn from: use a depth of {max(1, int(math.log2(padded)) - 1)} or less."
        )
    layers: list[nn.Module] = []
    for number in range(depth):
        padding = first_padding(size) if number == 0 else 1
        layers += [nn.Conv2d(width if number else channels, width, 3, padding=padding), instance_norm(width)]
        layers += [nn.ReLU(), Halve()]
    return nn.Sequential(*layers, nn.Flatten())


def mlp(channels: int, size: tuple[int, int], width: int, depth: int | None) -> nn.Sequential:
    """Two hidden layers of 128."""
    pixels = channels * size[0] * size[1]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())


def lenet(channels: int, size: tuple[int, int], width: int, depth: int | None) -> nn.Sequential:
    """LeNet-5 with ReLU and maximum pooling."""
    padding = 2 if size == (28, 28) else 0
    _check_size("LeNet", size, 16)
    side = [((pixels + 2 * padding - 4) // 2 - 4) // 2 for pixels in size]
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * side[0] * side[1], 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
    )


def alexnet(channels: int, size: tuple[int, int], width: int, depth: int | None) -> nn.Sequential:
    """AlexNet's five convolutions, made for small images; it has no normalisation."""
    _check_size("AlexNet", size, 8)
    return nn.Sequential(
        *(nn.Conv2d(channels, 128, 5, padding=first_padding(size) + 1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    )


def vgg11(channels: int, size: tuple[int, int], width: int, depth: int | None) -> nn.Sequential:
    """VGG-11 with instance normalisation, averaged at the end."""
    _check_size("VGG11", size, 28)
    layers: list[nn.Module] = []
    stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # each ends in maximum pooling
    widths = [channels, *(outputs for stage in stages for outputs in stage)]
    convolutions = iter(pairwise(widths))
    for stage in stages:
        for _ in stage:
            inputs, outputs = next(convolutions)
            padding = 1 if layers else first_padding(size)
            layers += [nn.Conv2d(inputs, outputs, 3, padding=padding), instance_norm(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def resnet(channels: int, size: tuple[int, int], width: int, depth: int | None) -> nn.Module:
    """ResNet-18 for small images: a 3x3 stem that does not shrink them, instance normalisation."""
    _check_size("ResNet18", size, 16)
    network = resnet18(norm_layer=instance_norm)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    network.maxpool, network.fc = nn.Identity(), nn.Identity()
    return network


def _check_size(name: str, size: tuple[int, int], least: int) -> None:
    if min(size) < least:
        raise UserError(f"{name} shrinks images of {size[0]}x{size[1]} pixels to nothing: it needs {least}x{least}.")


NETWORKS: dict[str, Callable[[int, tuple[int, int], int, int | None], nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet,
}
POOL = tuple(NETWORKS)  # what a synthetic set has to serve, though it was made with one of them
