"""RandAugment, random erasing, Mixup and CutMix of a batch, on the device, drawn from the run's random state."""

import math

import torch
from torch import Tensor
from torch.distributions import Beta
from torchvision.transforms.v2 import InterpolationMode, RandAugment


def rand_augment(image: Tensor, severity: float) -> Tensor:
    """Change every image by two random operations of RandAugment (arXiv 1909.13719): rotate, posterise, contrast ...

    Args:
        image: [B, C, H, W] in [0, 1].
        severity: strength of the operations in [0, 1]; 0: off. timm's `rand-m9` is 0.9.
    """
    if not severity:
        return image
    levels = 31
    augment = RandAugment(2, round(severity * (levels - 1)), levels, InterpolationMode.BILINEAR)
    return torch.stack([augment(each) for each in image])


def mix(image: Tensor, target: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix every image and target with those of the batch in reverse order, by one share for the batch.

    Mixup blends the images, CutMix pastes a rectangle; where both are on, each takes half of the batches.
    Sources: arXiv 1710.09412 and 1905.04899.

    Args:
        image: [B, C, H, W].
        target: probabilities [B, K].
        mixup: alpha of Mixup's Beta(alpha, alpha); 0: off.
        cutmix: alpha of CutMix's; 0: off.

    Returns:
        Images and targets of the same shapes.
    """
    if not mixup and not cutmix:
        return image, target
    paste = bool(cutmix) and (not mixup or float(torch.rand(())) < 0.5)
    alpha = cutmix if paste else mixup
    share = float(Beta(alpha, alpha).sample())
    if paste:
        height, width = image.shape[-2:]
        top, bottom = cut(height, math.sqrt(1 - share))
        left, right = cut(width, math.sqrt(1 - share))
        mixed = image.clone()
        mixed[..., top:bottom, left:right] = image.flip(0)[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)  # what the border has left of it
    else:
        mixed = share * image + (1 - share) * image.flip(0)
    return mixed, share * target + (1 - share) * target.flip(0)


def cut(side: int, part: float) -> tuple[int, int]:
    """An interval of `part` of a side around a uniform centre, clipped to the side: its start and end in pixels."""
    centre, half = int(torch.randint(side, ())), int(side * part) // 2
    return max(0, centre - half), min(side, centre + half)


def erase(image: Tensor, probability: float) -> Tensor:
    """Fill a rectangle of each image, with this probability, with noise of the unit interval.

    Area uniform in [0.02, 1/3] of the image, aspect ratio log-uniform in [0.3, 1/0.3], as in arXiv 1708.04896.

    Args:
        image: [B, C, H, W] in [0, 1].
        probability: of an image to be erased in.
    """
    if not probability:
        return image
    b, _, height, width = image.shape
    chance, area, aspect, y, x = torch.rand(5, b, 1, device=image.device)
    pixels = (0.02 + area * (1 / 3 - 0.02)) * height * width
    shape = ((2 * aspect - 1) * math.log(0.3)).exp()
    tall, wide = (pixels * shape).sqrt().clamp(max=height), (pixels / shape).sqrt().clamp(max=width)
    rows, columns = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
    top, left = y * (height - tall), x * (width - wide)
    inside = ((rows >= top) & (rows < top + tall))[:, :, None] & ((columns >= left) & (columns < left + wide))[:, None]
    erased = (inside & (chance < probability)[..., None])[:, None]  # [B, 1, H, W]
    return torch.where(erased, torch.rand_like(image), image)
