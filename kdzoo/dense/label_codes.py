"""Labels as input channels, for a teacher that sees them: each class becomes a number, and gets noise."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kdzoo.datamodules.segmentation_data import IGNORE

Coding = Literal["random", "fixed", "one_hot"]
LEVELS = 100 / 255  # a code of 1 is 100 of an image's 255 levels


def code_channels(coding: Coding, classes: int) -> int:
    """How many channels a coding has: one, or for `one_hot` one for each class and for pixels without a class."""
    return classes + 1 if coding == "one_hot" else 1


def encode(mask: Tensor, classes: int, coding: Coding, noise: float) -> Tensor:
    """Code a mask as channels beside an image in [0, 1]. Pixels without a class are a class of their own, the last.

    `random` draws a number for each class of each image anew, from the normal distribution: the number says which
    pixels belong together, but not to what. `fixed` spreads the classes over [-1.1, 1]: class k of C is
    (k - (C + 1) / 2) / ((C - 1) / 2), which for the 21 classes of VOC is (k - 11) / 10. `one_hot` is 0 or 1.

    Args:
        mask: int64 [B, H, W], 0 ... C - 1 or `IGNORE`.
        classes: C, 2 or more.
        coding: which numbers.
        noise: standard deviation of the noise of each pixel, in units of the code; from the global generator.

    Returns:
        float32 [B, 1 or C + 1, H, W].
    """
    ids = torch.where(mask == IGNORE, classes, mask)  # [B, H, W], 0 ... C
    if coding == "one_hot":
        code = one_hot(ids, classes + 1).permute(0, 3, 1, 2).float()
    else:
        if coding == "random":
            numbers = torch.randn(len(mask), classes + 1, device=mask.device)
        else:
            steps = torch.arange(classes + 1, device=mask.device)
            numbers = ((steps - (classes + 1) / 2) / ((classes - 1) / 2)).expand(len(mask), -1)
        code = numbers.gather(1, ids.flatten(1)).view_as(mask)[:, None].float()
    if noise:
        code = code + noise * torch.randn(code.shape, device=code.device)
    return LEVELS * code
