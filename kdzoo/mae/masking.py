"""Which patches of an image are hidden, and how an image becomes patches and back."""

import torch
from torch import Tensor

from kdzoo.datamodules.augment import uniform
from kdzoo.errors import UserError

MASK = 64  # first slot of the mask's random numbers: those below belong to flips, shifts and crops


def count_visible(patches: int, mask_ratio: float) -> int:
    """How many of `patches` patches stay visible, rounded as the paper counts them (98 % of 196 leave 4).

    Args:
        patches: patches of an image.
        mask_ratio: share of them that is hidden, in (0, 1).

    Raises:
        UserError: no patch is visible, or none is hidden.
    """
    visible = round(patches * (1 - mask_ratio))
    if not 0 < visible < patches:
        raise UserError(
            f"mask_ratio={mask_ratio} leaves {visible} of {patches} patches visible: at least one must be visible and "
            "at least one hidden."
        )
    return visible


def draw_mask(seed: int, index: Tensor, view: Tensor, patches: int, visible: int) -> tuple[Tensor, Tensor]:
    """Choose the visible patches of every image, uniformly, as a pure function of (seed, index, view).

    Args:
        seed: seed of the masks.
        index: int64 [B], the sample's number.
        view: int64 [B], which view of the sample.
        patches: N, patches of an image.
        visible: V, how many of them are visible.

    Returns:
        The numbers of the visible patches, int64 [B, V], and of the masked ones, int64 [B, N - V].
    """
    slots = MASK + torch.arange(patches, device=index.device)
    noise = uniform(seed, index[:, None], view[:, None], slots)  # [B, N]
    order = noise.argsort(dim=1, stable=True)
    return order[:, :visible], order[:, visible:]


def take(tokens: Tensor, ids: Tensor) -> Tensor:
    """The tokens [B, N, D] with the numbers `ids`, int64 [B, K]: [B, K, D]."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(image: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images [B, C, H, W] into patches of (height, width) pixels, row by row: [B, N, height * width * C]."""
    b, c, h, w = image.shape
    tall, wide = patch
    return image.reshape(b, c, h // tall, tall, w // wide, wide).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Put patches [B, N, height * width * C] on a grid of (rows, columns) together: [B, C, H, W]."""
    (rows, columns), (tall, wide) = grid, patch
    image = patches.reshape(len(patches), rows, columns, tall, wide, -1).permute(0, 5, 1, 3, 2, 4)
    return image.flatten(4, 5).flatten(2, 3)
