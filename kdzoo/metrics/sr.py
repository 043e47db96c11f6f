"""How super-resolution is scored by the benchmarks of the field, and shown.

Images are rounded to 8 bits, their luma is taken by Matlab's conversion (BT.601, 16 ... 235) and rounded again, and a
border as wide as the scale is left out.
"""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from kdzoo.metrics.figures import INK, styled

WINDOW = 5  # pixels around which the window of the structural similarity (11 x 11, sigma 1.5) leaves the image


def luma(image: Tensor) -> Tensor:
    """Luma of images [B, 3, H, W] in [0, 1] (clamped): whole numbers 16 ... 235, float32 [B, 1, H, W]."""
    levels = (255 * image.float().clamp(0, 1)).round()
    weights = torch.tensor([65.481, 128.553, 24.966], device=image.device).view(3, 1, 1) / 255
    return (16 + (weights * levels).sum(1, keepdim=True)).round()


def shaved(image: Tensor, border: int) -> Tensor:
    """Leave out a border of so many pixels."""
    return image[..., border : image.shape[-2] - border, border : image.shape[-1] - border]


def psnr_y(output: Tensor, truth: Tensor, scale: int) -> Tensor:
    """Peak signal-to-noise ratio of the luma, dB [B]; infinite where nothing differs.

    Args:
        output: [B, 3, H, W] in [0, 1].
        truth: the same.
        scale: width of the border that is left out.
    """
    pair = shaved(luma(output), scale), shaved(luma(truth), scale)
    return peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3))


def ssim_y(output: Tensor, truth: Tensor, scale: int) -> Tensor:
    """Structural similarity of the luma where the whole window lies in the image, [B]; arguments as `psnr_y`."""
    pair = shaved(luma(output), scale), shaved(luma(truth), scale)
    _, full = structural_similarity_index_measure(*pair, data_range=255.0, reduction="none", return_full_image=True)
    return shaved(full, WINDOW).mean((1, 2, 3))


def telling_crop(bicubic: Tensor, truth: Tensor, side: int = 96) -> tuple[slice, slice]:
    """Find where interpolation errs most: rows and columns of a square of [3, H, W] images."""
    side = min(side, *truth.shape[-2:])
    error = avg_pool2d((bicubic - truth).square().mean(0)[None], side, stride=max(1, side // 8))[0]  # [h, w]
    row, column = divmod(int(error.argmax()), error.shape[1])
    top, left = row * max(1, side // 8), column * max(1, side // 8)
    return slice(top, top + side), slice(left, left + side)


def crops_figure(crops: Sequence[tuple[Tensor, Tensor, Tensor]], scores: Sequence[tuple[float, float]]) -> Figure:
    """Show crops side by side: interpolated, upscaled, true.

    Args:
        crops: one or more triples of [3, h, w] in [0, 1].
        scores: for each the luma PSNR of the whole image, interpolated and upscaled.
    """
    figure, axes = styled(9, 3.2 * len(crops), len(crops), 3)
    for ax in axes:
        ax.set_axis_off()
    for row, (images, values) in enumerate(zip(crops, scores)):
        titles = f"bicubic, {values[0]:.2f} dB", f"output, {values[1]:.2f} dB", "truth"
        for ax, picture, title in zip(axes[3 * row : 3 * row + 3], images, titles):
            ax.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="none")
            ax.set_title(title, color=INK, fontsize=10)
    return figure
