"""How segmentation is scored, and shown: intersection over union of each class, and masks over images."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from kdzoo.metrics.figures import BLUE, INK, styled

SHOWN_CLASSES = 40  # more bars than this are the worst ones alone


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class, in percent [C]; NaN for a class that is neither there nor predicted.

    Args:
        counts: pixels [C, C], rows the true class, columns the predicted one.
    """
    hits = counts.diagonal().double()
    return 100 * hits / (counts.sum(0) + counts.sum(1) - hits)  # 0 / 0 is NaN


class MeanIoU(MulticlassConfusionMatrix):
    """The mean of `class_iou` over the classes that are there or predicted, in percent."""

    def compute(self) -> Tensor:
        """Return the mean over all pixels seen so far, a scalar in [0, 100]."""
        return class_iou(super().compute()).nanmean()


def palette(classes: int) -> np.ndarray:
    """A colour for each id, uint8 [classes, 3]: those of PASCAL VOC, which spread the bits of the id over the bytes."""
    colours = np.zeros((classes, 3), np.uint8)
    for id in range(classes):
        for bit in range(8):
            for channel in range(3):
                colours[id, channel] |= ((id >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


def overlay(image: Tensor, mask: Tensor, classes: int) -> np.ndarray:
    """The image, [3, H, W] in [0, 1], with its mask [H, W] over it: float [H, W, 3]; class 0 and no class are clear."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).double().numpy()
    ids = mask.numpy()
    colours = palette(256)[ids] / 255
    shown = ((ids > 0) & (ids < classes))[..., None]
    return np.where(shown, 0.35 * pixels + 0.65 * colours, pixels)


def masks_figure(seen: Sequence[tuple[Tensor, Tensor, Tensor]], class_names: Sequence[str]) -> Figure:
    """Show images beside the truth and the prediction.

    Args:
        seen: one or more triples: image [3, H, W] in [0, 1], true mask and predicted mask int64 [H, W].
        class_names: a name per class; those that occur are explained.
    """
    figure, axes = styled(8, 2.6 * len(seen), len(seen), 3)
    for ax in axes:
        ax.set_axis_off()
    for row, (image, truth, predicted) in enumerate(seen):
        pictures = (
            image.clamp(0, 1).permute(1, 2, 0).numpy(),
            *(overlay(image, m, len(class_names)) for m in (truth, predicted)),
        )
        for ax, picture, title in zip(axes[3 * row : 3 * row + 3], pictures, ("image", "truth", "prediction")):
            ax.imshow(picture, interpolation="none")
            if row == 0:
                ax.set_title(title, color=INK, fontsize=10)
    found = torch.cat([mask.flatten() for _, truth, predicted in seen for mask in (truth, predicted)]).unique().tolist()
    colours = palette(len(class_names)) / 255
    for id in (id for id in found if 0 < id < len(class_names)):
        axes[-1].plot([], [], "s", color=colours[id], label=class_names[id])
    if axes[-1].lines:
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False, labelcolor=INK)
    return figure


def iou_figure(iou: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw a bar for each class that is there, best first; of very many classes the worst.

    Args:
        iou: percent [C], NaN for a class that is not there.
        class_names: C names.
    """
    pairs = sorted(((value, name) for value, name in zip(iou.tolist(), class_names) if value == value), reverse=True)
    pairs = pairs[-SHOWN_CLASSES:]
    figure, (ax,) = styled(7, 1 + 0.26 * max(2, len(pairs)))
    ax.barh(range(len(pairs)), [value for value, _ in pairs], color=BLUE, height=0.7)
    for row, (value, _) in enumerate(pairs):
        ax.text(value + 1, row, f"{value:.1f}", va="center", color=INK, fontsize=8)
    ax.set_yticks(range(len(pairs)), [name for _, name in pairs], parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(0, 108)
    ax.set_xlabel("intersection over union, %")
    ax.grid(False, axis="y")
    return figure
