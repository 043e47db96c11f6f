"""Augmentation as a pure function of (seed, index, view): the same sample in the same view has the same pixels.

Random numbers come from a counter-based hash instead of a generator: nothing is stored, any batch composition,
worker and device gives the same result, and a whole batch is drawn at once.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

CROP = 16  # first slot of the random crops; 0, 1 and 2 are flip and shift
_MASK = 0xFFFFFFFF


def hash32(*words: int | Tensor) -> Tensor:
    """Hash integers to 32 bits.

    Each word is absorbed with the golden-ratio increment of SplitMix and one round of the integer finaliser
    `xorshift 16, * 0x21f0aaad, xorshift 15, * 0x735a2d97, xorshift 15` (found by the search of Chris Wellons'
    hash-prospector). Both factors are below 2^31, so that a product of 32 bits never overflows int64.

    Args:
        words: integers or int64 tensors that broadcast against each other; taken modulo 2^32.

    Returns:
        int64 tensor of the broadcast shape, values in [0, 2^32).
    """
    state = torch.zeros((), dtype=torch.int64)
    for word in words:
        state = ((state ^ (torch.as_tensor(word) & _MASK)) + 0x9E3779B9) & _MASK
        state = ((state ^ (state >> 16)) * 0x21F0AAAD) & _MASK
        state = ((state ^ (state >> 15)) * 0x735A2D97) & _MASK
        state = state ^ (state >> 15)
    return state


def uniform(seed: int, index: int | Tensor, view: int | Tensor, slot: int | Tensor) -> Tensor:
    """Random numbers in [0, 1), float32 of the broadcast shape of `index`, `view` and `slot`."""
    return (hash32(seed, index, view, slot) >> 8).float() / 2**24  # 24 bits: every value is exact in float32


def flip_and_shift(image: Tensor, index: Tensor, view: Tensor, flip: bool, shift: int, seed: int) -> Tensor:
    """Flip each image left to right with probability 1/2, then move it by up to `shift` pixels, filling with zeros.

    Args:
        image: [B, C, H, W], any dtype and device.
        index: int64 [B], the sample's number.
        view: int64 [B], which view of the sample.
        flip: whether to flip at all.
        shift: largest distance along each axis, in pixels; 0 moves nothing.
        seed: seed of the hash.

    Returns:
        [B, C, H, W], dtype and device of `image`.
    """
    slots = torch.arange(3, device=index.device)[:, None]
    flipped, down, right = uniform(seed, index, view, slots)  # [B] each
    if flip:
        image = torch.where((flipped < 0.5)[:, None, None, None], image.flip(-1), image)
    if shift:
        height, width = image.shape[-2:]
        windows = pad(image, (shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2s+1, 2s+1, H, W], no copy
        top, left = (down * (2 * shift + 1)).long(), (right * (2 * shift + 1)).long()
        image = windows[torch.arange(len(image), device=image.device), :, top, left]
    return image


def crop_box(
    seed: int,
    index: int,
    view: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """Box of a random resized crop: area uniform in `scale` of the image, aspect ratio log-uniform in `ratio`.

    The first of ten draws that fits, else the largest central box within `ratio`: the rule of torchvision's
    RandomResizedCrop.

    Returns:
        (left, top, right, bottom) in pixels, inside the image, never empty.
    """
    draws = uniform(seed, index, view, CROP + torch.arange(40)).reshape(10, 4).tolist()
    for area, aspect, y, x in draws:
        pixels = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(math.log(ratio[0]) + aspect * math.log(ratio[1] / ratio[0]))
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
