"""Pictures of a synthetic set for the report."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdzoo.metrics.figures import INK, styled

COLUMNS = 10  # images per class in the figure


def set_figure(pixels: Tensor, class_names: Sequence[str], ipc: int) -> Figure:
    """Draw a class per row, its first ten images.

    Args:
        pixels: float [classes * ipc, C, H, W] in [0, 1], class by class; values outside are clipped.
        class_names: Names of the first classes, which are drawn.
        ipc: Images per class.
    """
    shown = min(ipc, COLUMNS)
    rows = [pixels[number * ipc : number * ipc + shown] for number in range(len(class_names))]
    if shown == 1:  # two rows of classes instead of a column of pictures
        columns = -(-len(class_names) // 2)
        figure, axes = styled(1.1 * columns, 3.0, 2, columns)
        for ax, row, name in zip(axes, rows, class_names):
            _show(ax, row[0])
            ax.set_title(name, color=INK, fontsize=8, parse_math=False)
    else:
        figure, axes = styled(0.7 * shown + 1, 0.75 * len(rows), len(rows), shown)
        for number, (row, name) in enumerate(zip(rows, class_names)):
            for column, image in enumerate(row):
                _show(axes[number * shown + column], image)
            _name(axes[number * shown], name)
    for ax in axes:
        _bare(ax)
    return figure


def evolution_figure(history: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw the first image of each class from the start, left, to the end.

    Args:
        history: uint8 [T, classes, C, H, W].
        class_names: A name per class.
    """
    times, classes = history.shape[:2]
    figure, axes = styled(0.75 * times + 1, 0.75 * classes, classes, times)
    for number in range(classes):
        for time in range(times):
            _show(axes[number * times + time], history[time, number].float() / 255)
        _name(axes[number * times], class_names[number])
    for ax in axes:
        _bare(ax)
    return figure


def _show(ax: Axes, image: Tensor) -> None:
    values = np.clip(image.permute(1, 2, 0).numpy(), 0, 1)  # [H, W, C]
    ax.imshow(values if values.shape[2] == 3 else values.mean(2), cmap="gray", vmin=0, vmax=1, interpolation="none")


def _name(ax: Axes, name: str) -> None:
    ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)
