"""Differentiable siamese augmentation (DSA): random changes of images that gradients pass through.

A strategy names operations, joined by `_`: `color` (brightness, saturation, contrast), `crop`, `cutout`, `flip`,
`scale`, `rotate`. One of them, drawn anew for every call, is applied (`mode="one"`, the authors'), or all in turn.
Siamese: all images of a call share one random draw, so that the same seed gives the real and the synthetic batch of
a class the same operation, whatever their sizes. Otherwise every image has its own.
Images are normalised: zero is the mean, and what is moved in or cut out.
Source: Zhao and Bilen, arXiv 2102.08259; the strengths are those of the authors' code.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from kdzoo.errors import UserError, near

Mode = Literal["one", "all"]
DSA = "color_crop_cutout_flip_scale_rotate"  # the strategy for anything but digits, which must not be flipped
NONE = "none"

FLIP = 0.5  # probability
SCALE = 1.2  # largest zoom, and its inverse
ROTATE = 15.0  # degrees
CROP = 0.125  # of the side
CUTOUT = 0.5  # of the side
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5


Draw = list[tuple[str, Tensor]]  # operations in their order, with their uniform random numbers


def augment(
    x: Tensor, strategy: str = DSA, seed: int | None = None, siamese: bool = False, mode: Mode = "one"
) -> Tensor:
    """Augment normalised images: `apply` what `draw` gives.

    Args:
        x: float [B, C, H, W].
        strategy: Operations joined by `_`, or `none`.
        seed: The draw is a function of it; None: drawn from torch's global generator.
        siamese: Draw once for all images.
        mode: Apply one of the operations, or all of them.

    Returns:
        [B, C, H, W], differentiable in `x`.

    Raises:
        UserError: The strategy names an unknown operation.
    """
    return apply(x, draw(len(x), strategy, seed, siamese, mode))


def draw(size: int, strategy: str = DSA, seed: int | None = None, siamese: bool = False, mode: Mode = "one") -> Draw:
    """Draw for `size` images what `apply` does; see `augment`. To be called outside of `torch.func.vmap`."""
    names = operations(strategy)
    generator = torch.default_generator if seed is None else torch.Generator().manual_seed(seed)
    if names and mode == "one":
        names = [names[int(torch.randint(len(names), (), generator=generator))]]
    # Drawn on the CPU: few numbers, and the same for every device.
    return [(name, torch.rand(DRAWS[name], 1 if siamese else size, 1, 1, 1, generator=generator)) for name in names]


def apply(x: Tensor, drawn: Draw) -> Tensor:
    """Apply a draw to images [B, C, H, W]; a pure function, under `torch.func.vmap` too."""
    for name, numbers in drawn:
        x = OPERATIONS[name](x, numbers.to(x.device))
    return x


def operations(strategy: str) -> list[str]:
    """The operations of a strategy; none for `none`."""
    names = [] if strategy == NONE else strategy.split("_")
    for name in names:
        if name not in OPERATIONS:
            raise UserError(
                f"'{name}' in the augmentation '{strategy}' is unknown.{near(name, OPERATIONS)} "
                f"Give some of {', '.join(OPERATIONS)}, joined by _, or {NONE}."
            )
    return names


# Each takes images [B, C, H, W] and its uniform draws in [0, 1), [draws, B, 1, 1, 1] or [draws, 1, 1, 1, 1].


def color(x: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, then saturation, then contrast."""
    brightness, saturation, contrast = draws.to(x.dtype)
    x = x + (brightness - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (saturation * SATURATION) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + CONTRAST) + mean


def crop(x: Tensor, draws: Tensor) -> Tensor:
    """Move by up to an eighth of the side."""
    height, width = x.shape[-2:]
    furthest = [int(side * CROP + 0.5) for side in (height, width)]
    down, right = (
        (draw * (2 * most + 1)).long() for draw, most in zip(draws, furthest)
    )  # [B, 1, 1, 1], how far into the padding
    padded = pad(x, (furthest[1], furthest[1], furthest[0], furthest[0]))
    rows = down + torch.arange(height, device=x.device)[:, None]  # [B, 1, H, 1]
    columns = right + torch.arange(width, device=x.device)  # [B, 1, 1, W]
    padded = padded.gather(2, rows.expand(x.shape[0], x.shape[1], height, padded.shape[3]))
    return padded.gather(3, columns.expand(x.shape[0], x.shape[1], height, width))


def cutout(x: Tensor, draws: Tensor) -> Tensor:
    """Blank a square of half the side, which may lie partly outside."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for draw, axis in zip(draws, (-2, -1)):
        side = x.shape[axis]
        size = int(side * CUTOUT + 0.5)
        centre = (draw * (side + 1 - size % 2)).long()  # [B, 1, 1, 1]
        place = torch.arange(side, device=x.device)
        place = place[:, None] if axis == -2 else place
        inside = inside & (place >= centre - size // 2) & (place < centre - size // 2 + size)  # [B, 1, H, W]
    return x * ~inside


def flip(x: Tensor, draws: Tensor) -> Tensor:
    """Mirror left to right, half of the time."""
    return torch.where(draws[0] < FLIP, x.flip(-1), x)


def scale(x: Tensor, draws: Tensor) -> Tensor:
    """Zoom each axis by its own factor."""
    y, x_axis = (draws * (SCALE - 1 / SCALE) + 1 / SCALE)[:, :, 0, 0, 0]  # [B] each
    zero = torch.zeros_like(y)
    return _sample(x, torch.stack([x_axis, zero, zero, zero, y, zero], dim=1))


def rotate(x: Tensor, draws: Tensor) -> Tensor:
    """Turn about the centre."""
    angle = ((draws[0] - 0.5) * 2 * ROTATE * math.pi / 180)[:, 0, 0, 0]  # [B]
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _sample(x, torch.stack([cos, -sin, zero, sin, cos, zero], dim=1))


def _sample(x: Tensor, theta: Tensor) -> Tensor:
    theta = theta.view(-1, 2, 3).to(x.dtype).expand(x.shape[0], 2, 3)
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}
DRAWS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}  # random numbers that each takes
