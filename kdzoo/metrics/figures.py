"""Figures of a classifier's results, and the style that all figures of a report share.

They are drawn without pyplot, on a transparent ground with ink that the report's page recolours for light and dark.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

INK = "#7a7b7c"  # legible on white and on black; in the page it becomes the colour of the text
BLUE, ORANGE, GREEN, RED = "#4c8ed9", "#e8863a", "#3c9d5d", "#d9534f"
MANY_CLASSES = 20  # from here on a confusion matrix is a list of its worst pairs


def confusion_figure(matrix: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Draw which classes are taken for which: all of them, or for many classes the 20 most confused pairs.

    Args:
        matrix: counts [C, C], rows the true class, columns the predicted one.
        class_names: C names.
    """
    counts = np.asarray(matrix, dtype=float)  # [C, C]
    if len(class_names) > MANY_CLASSES:
        return _confused_pairs(counts, [_short(name, 30) for name in class_names])
    names = [_short(name) for name in class_names]
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # [C, C], percent of the true class
    side = 2 + 0.42 * len(names)
    figure, (ax,) = styled(side + 0.5, side)
    colours = np.empty((*share.shape, 4))  # [C, C, 4]
    colours[:] = to_rgba(BLUE)
    colours[..., 3] = 0.85 * np.sqrt(share / 100)  # strength as opacity: the ground shows through in light and dark
    ax.imshow(colours, interpolation="none")
    for (i, j), value in np.ndenumerate(share):
        if value >= 0.5:
            ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=INK, fontsize=8)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_xlabel("predicted, % of the true class")
    ax.set_ylabel("true")
    ax.grid(False)
    return figure


def _confused_pairs(counts: np.ndarray, names: Sequence[str]) -> Figure:
    wrong = counts - np.diag(np.diag(counts))
    worst = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:20]]
    pairs = [(f"{names[i]} → {names[j]}", wrong[i, j]) for i, j in worst if wrong[i, j] > 0]
    figure, (ax,) = styled(9, 1.2 + 0.26 * max(len(pairs), 2))
    ax.barh(range(len(pairs)), [number for _, number in pairs], color=BLUE, height=0.7)
    ax.set_yticks(range(len(pairs)), [label for label, _ in pairs], parse_math=False)
    ax.invert_yaxis()
    ax.set_xlabel("images of the first class taken for the second" if pairs else "no image is taken for another class")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(False, axis="y")
    return figure


def reliability_figure(confidence: ArrayLike, correct: ArrayLike, ece: float) -> Figure:
    """Draw how often the network is right at each confidence, and how often it has that confidence.

    Args:
        confidence: probability of the predicted class [N], in [0, 1].
        correct: whether the prediction is right [N].
        ece: expected calibration error, in percent, for the title.
    """
    sure, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)  # [N]
    bins = np.minimum((sure * 15).astype(int), 14)  # [N]: 15 bins of equal width
    sizes = np.bincount(bins, minlength=15)  # [15]
    accuracy = np.bincount(bins, right, minlength=15) / np.maximum(sizes, 1)  # [15]
    centres = (np.arange(15) + 0.5) / 15
    figure, (top, bottom) = styled(5, 5.4, 2, 1, height_ratios=[3, 1], sharex=True)
    top.bar(centres, accuracy, width=1 / 15, color=BLUE, alpha=0.85)
    top.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--")
    top.set_title(f"calibration error {ece:.2f} %", color=INK, fontsize=10)
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1)
    bottom.bar(centres, sizes / max(len(sure), 1), width=1 / 15, color=INK, alpha=0.6)
    bottom.set_ylabel("share")
    bottom.set_xlabel("confidence")
    bottom.set_xlim(0, 1)
    return figure


def predictions_figure(
    images: ArrayLike, true: ArrayLike, predicted: ArrayLike, confidence: ArrayLike, class_names: Sequence[str]
) -> Figure:
    """Show images with the predicted class, the confidence in it, and the true class where it is another.

    Args:
        images: at least one, [N, C, H, W] in [0, 1]; the first 24 are shown, in colour if C = 3, else the mean channel.
        true: classes [N]; -1 for unknown.
        predicted: classes [N].
        confidence: probability of the predicted class [N], in [0, 1].
        class_names: a name per class.
    """
    pictures = np.clip(np.asarray(images, dtype=float)[:24], 0, 1).transpose(0, 2, 3, 1)  # [N, H, W, C]
    labels, guesses, sure = np.asarray(true), np.asarray(predicted), np.asarray(confidence, dtype=float)
    columns = min(6, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure, axes = styled(1.6 * columns, 2.05 * rows, rows, columns)
    for ax in axes:
        ax.set_axis_off()
    for ax, picture, label, guess, probability in zip(axes, pictures, labels, guesses, sure):
        shown = picture if picture.shape[2] == 3 else picture.mean(axis=2)
        ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="none")
        mark, colour = ("✓", GREEN) if label == guess else ("✗", RED) if label >= 0 else ("", INK)
        line = f"{mark} {_short(class_names[guess])} {100 * probability:.0f} %".strip()
        truth = f"\nis {_short(class_names[label])}" if mark == "✗" else "\n "
        ax.set_title(line + truth, color=colour, fontsize=8, parse_math=False)
    return figure


def styled(width: float, height: float, rows: int = 1, columns: int = 1, **how: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure of `rows` x `columns` axes in the style of the report; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = list(figure.subplots(rows, columns, squeeze=False, **how).flat)
    for ax in axes:
        ax.set_facecolor("none")
        ax.tick_params(color=INK, labelcolor=INK, labelsize=9)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(INK)
        ax.grid(color=INK, alpha=0.2, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _short(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2 - 1) :]}"
