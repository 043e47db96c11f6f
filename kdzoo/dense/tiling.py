"""Super-resolution of images of any size, piece by piece.

`exact`: tiles with a halo as wide as the network sees, and one set of contrasts for the whole image: equal to the whole
image in one pass up to rounding. IMDN's attention makes each block depend on the contrasts of all pixels, so there is a
pass over the tiles for each block that gathers them, and a last one that writes.

`published`: the four overlapping quarters of the paper's adaptive cropping. Each quarter has contrasts of its own, so
the result differs from that of the whole image, also far from the seams.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from kdzoo.dense.imdn_network import EPSILON
from kdzoo.errors import UserError

Tiling = Literal["exact", "published"]
Box = tuple[int, int, int, int]  # top, left, bottom, right
SMALLEST = 16  # side of a tile, in pixels of the input
RESERVE = 1.6  # convolutions hold copies of their own beside what a pass needs
SHAVE = 32


def pieces(network: Any, image: Tensor, tiling: Tiling, memory: float) -> Iterator[tuple[Box, Tensor] | None]:
    """Upscale one image piece by piece.

    Args:
        network: See `kdzoo.dense.imdn_network`.
        image: [1, 3, H, W] in [0, 1].
        tiling: How to cut.
        memory: Bytes that a pass over a piece may take.

    Yields:
        Finished pieces: their box in the output, and the pixels [1, 3, h, w]. None: a step that wrote nothing.

    Raises:
        UserError: The memory is too little.
    """
    if tiling == "published":
        yield from quarters(network, image, memory)
    else:
        yield from exact(network, image, tile_side(network, memory))


def passes(network: Any, image: Tensor, tiling: Tiling, memory: float) -> int:
    """Return how many steps `pieces` takes."""
    if tiling == "published":
        return 4
    height, width = image.shape[-2:]
    return (network.attentions + 1) * len(tiles(height, width, tile_side(network, memory)))


def tile_side(network: Any, memory: float) -> int:
    """Return the side of the largest tile, without its halo, that a pass within `memory` bytes can take.

    Raises:
        UserError: There is none.
    """
    bytes_per_pixel = 4 * RESERVE * network.floats_per_pixel
    side = int((max(0.0, memory) / bytes_per_pixel) ** 0.5) - 2 * network.halo
    if side < SMALLEST:
        more = bytes_per_pixel * (SMALLEST + 2 * network.halo) ** 2 - memory
        raise UserError(f"The memory is too little for one tile: give data.memory {more / 1e9:.2g} GB more.")
    return side


def tiles(height: int, width: int, side: int) -> list[Box]:
    """Cut an image into boxes of at most `side` pixels along each axis."""
    return [
        (top, left, min(top + side, height), min(left + side, width))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def widened(box: Box, halo: int, height: int, width: int) -> tuple[Box, Box]:
    """Return the box with its halo, as far as the image goes, and where the box lies in that."""
    top, left, bottom, right = box
    outer = max(0, top - halo), max(0, left - halo), min(height, bottom + halo), min(width, right + halo)
    return outer, (top - outer[0], left - outer[1], bottom - outer[0], right - outer[1])


def cut(image: Tensor, box: Box, scale: int = 1) -> Tensor:
    """The box of an image [B, C, H, W] that is `scale` times larger than the box's pixels."""
    top, left, bottom, right = (scale * edge for edge in box)
    return image[..., top:bottom, left:right]


def exact(network: Any, image: Tensor, side: int) -> Iterator[tuple[Box, Tensor] | None]:
    """Upscale with tiles of `side` pixels; equal to `network(image)` up to rounding. Yields as `pieces` does."""
    height, width = image.shape[-2:]
    boxes = [(box, *widened(box, network.halo, height, width)) for box in tiles(height, width, side)]
    contrasts: list[Tensor] = []  # of the whole image, block by block
    while len(contrasts) < network.attentions:
        total = squares = torch.zeros(())
        for _, outer, inner in boxes:
            seen = cut(network.attended(cut(image, outer), contrasts), inner).double()  # [1, C, h, w]
            total = total + seen.sum((2, 3), keepdim=True).cpu()
            squares = squares + seen.square().sum((2, 3), keepdim=True).cpu()
            yield None
        mean = total / (height * width)
        variance = (squares / (height * width) - mean**2).clamp(min=0)
        contrasts.append(((variance + EPSILON).sqrt() + mean).to(image))
    for box, outer, inner in boxes:
        top, left, bottom, right = (network.scale * edge for edge in box)
        yield (top, left, bottom, right), cut(network(cut(image, outer), contrasts), inner, network.scale)


def quarters(network: Any, image: Tensor, memory: float = float("inf")) -> Iterator[tuple[Box, Tensor]]:
    """Upscale four overlapping quarters, each as an image of its own. Yields as `pieces` does.

    A quarter is half the image and `SHAVE` pixels more, rounded down to a multiple of 4.
    """
    height, width = image.shape[-2:]
    half = height // 2, width // 2
    size = [min(whole, part + SHAVE - (part + SHAVE) % 4) for whole, part in zip((height, width), half)]
    needs = 4 * RESERVE * network.floats_per_pixel * size[0] * size[1]
    if needs > memory:
        raise UserError(
            f"A quarter of {size[1]} x {size[0]} pixels takes {needs / 1e9:.2g} GB, more than is left of data.memory: "
            "give more, or take data.tiling exact."
        )
    for lower in (False, True):
        for right in (False, True):
            # The part of the output that this quarter writes, and where the quarter starts.
            box = (half[0] * lower, half[1] * right, height if lower else half[0], width if right else half[1])
            start = (height - size[0]) * lower, (width - size[1]) * right
            quarter = cut(image, (*start, start[0] + size[0], start[1] + size[1]))
            inner = box[0] - start[0], box[1] - start[1], box[2] - start[0], box[3] - start[1]
            top, left, bottom, end = (network.scale * edge for edge in box)
            yield (top, left, bottom, end), cut(network(quarter), inner, network.scale)
