"""How pictures of a scene are scored and shown: each view on its own, without rounding, in [0, 1]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from kdzoo.metrics.figures import BLUE, INK, ORANGE, styled

WINDOW = 11  # pixels, of the structural similarity
ERRORS = 4.0  # by what error maps are multiplied


def psnr(picture: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of a picture in [0, 1] (clamped), any shape, in dB; 100 at the most."""
    error = (picture.float().clamp(0, 1) - truth.float()).square().mean()
    return -10 * error.clamp(min=1e-10).log10()


def ssim(picture: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of pictures [H, W, 3] in [0, 1]: Gaussian window of 11 pixels, sigma 1.5."""
    first, second = (each.float().clamp(0, 1).permute(2, 0, 1)[None] for each in (picture, truth))
    found = structural_similarity_index_measure(first, second, sigma=1.5, kernel_size=WINDOW, data_range=1.0)
    assert isinstance(found, Tensor)
    return found


@dataclass(frozen=True)
class Look:
    """One test view.

    Attributes:
        number: of the view.
        score: its PSNR.
        pictures: title -> [H, W, 3] in [0, 1]: `truth`, `student` and, where there is one, `teacher`; [] of views
            that are not shown.
        taught: PSNR of the teacher against the truth; None without one.
    """

    number: int
    score: float
    pictures: Mapping[str, Tensor]
    taught: float | None = None


def views_figure(looks: Sequence[Look]) -> Figure:
    """Show views side by side: the truth, what was rendered, and where that errs."""
    rows = []
    for look in looks:
        cells = [("truth", look.pictures["truth"])]
        for title, score in (("teacher", look.taught), ("student", look.score)):
            if title in look.pictures:
                picture = look.pictures[title]
                error = ERRORS * (picture - look.pictures["truth"]).abs()
                cells += [(f"{title}, {score:.2f} dB", picture), (f"{ERRORS:g} x error", error)]
        rows.append(cells)
    columns = len(rows[0])
    figure, axes = styled(2.1 * columns, 2.3 * len(rows), len(rows), columns)
    for ax, (title, picture) in zip(axes, [cell for row in rows for cell in row]):
        show(ax, picture, title)
    return figure


def scores_figure(looks: Sequence[Look]) -> Figure:
    """Draw the PSNR of every view, and the teacher's where there is one."""
    ordered = sorted(looks, key=lambda look: look.number)
    figure, (ax,) = styled(9, 2.8)
    place = range(len(ordered))
    ax.bar(place, [look.score for look in ordered], color=BLUE, label="student")
    taught = [look.taught for look in ordered if look.taught is not None]
    if len(taught) == len(ordered):
        ax.plot(place, taught, "o", color=ORANGE, label="teacher")
        ax.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    worst = min(look.score for look in ordered)
    ax.set_ylim(bottom=max(0, worst - 5))
    ax.set_xlabel("test view")
    ax.set_ylabel("PSNR, dB")
    return figure


def strip_figure(pictures: Sequence[Tensor]) -> Figure:
    """Show the pictures [H, W, 3] of a turn around a scene, in rows of six."""
    columns = min(6, len(pictures))
    rows = -(-len(pictures) // columns)
    figure, axes = styled(1.5 * columns, 1.5 * rows, rows, columns)
    for ax in axes:
        ax.set_axis_off()
    for ax, picture in zip(axes, pictures):
        show(ax, picture, "")
    return figure


def show(ax: Axes, picture: Tensor, title: str) -> None:
    """Put a picture [H, W, 3] into axes."""
    ax.set_axis_off()
    ax.imshow(picture.clamp(0, 1).cpu().numpy(), interpolation="none")
    ax.set_title(title, color=INK, fontsize=9)


def depth_picture(depth: Tensor, opacity: Tensor) -> Tensor:
    """Make distances [H, W] grey, near ones dark, [H, W] in [0, 1]; white where nothing is."""
    there = opacity > 0.5
    if not there.any():
        return torch.ones_like(depth)
    metres = depth / opacity.clamp(min=1e-6)
    low, high = metres[there].min(), metres[there].max()
    return torch.where(there, 0.9 * (metres - low) / (high - low).clamp(min=1e-6), torch.ones_like(depth))
