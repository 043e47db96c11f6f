"""Knowledge review: a level of the student, fused with all deeper ones, learns the teacher's features of that level.

    loss = CE(z_s, y) + ramp * review_weight * sum over levels HCL(ABF_l(f_s[l], what comes from level l + 1), f_t[l])

ABF fuses with learned attention, from the deepest level up; HCL compares at several resolutions. Shapes are found by a
dry run. Features are those after each stage's last ReLU, where the authors take them before it.
Source: Chen et al., arXiv 2104.09044 (in the authors' script weight 5 for this pair, 20 of 240 epochs of ramp).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import hierarchical_context
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Distilling Knowledge via Knowledge Review",
    arxiv="2104.09044",
    year=2021,
    family="image",
    task="image classification",
    teacher="any classifier with maps of features",
    student="any classifier with maps of features",
    data="images, labelled or not",
    code="https://github.com/dvlab-research/ReviewKD",
    tags=("features",),
)


def as_map(feature: Tensor) -> Tensor:
    """A vector [B, D] as a map [B, D, 1, 1]; a map as it is."""
    return feature[:, :, None, None] if feature.dim() == 2 else feature


class Fusion(nn.Module):
    """Attention-based fusion of a level with what comes from the deeper ones.

    Args:
        channels: The student's at this level.
        middle: What is handed on.
        target: The teacher's.
        deepest: Whether nothing comes from below.
    """

    def __init__(self, channels: int, middle: int, target: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.attend = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.expand = nn.Sequential(nn.Conv2d(middle, target, 3, padding=1, bias=False), nn.BatchNorm2d(target))

    def forward(self, feature: Tensor, deeper: Tensor | None, size: Any) -> tuple[Tensor, Tensor]:
        """The guess of the teacher's map at its height and width `size`, and what is handed on."""
        x = self.reduce(feature)
        if self.attend is not None and deeper is not None:
            deeper = interpolate(deeper, x.shape[2:], mode="nearest")
            own, other = self.attend(torch.cat([x, deeper], 1)).sigmoid().split(1, 1)  # [B, 1, H, W] each
            x = own * x + other * deeper
        return self.expand(interpolate(x, size, mode="nearest")), x


class ReviewKD(Tapped):
    """Knowledge review.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_taps: Where the student is tapped: module paths, or indices of timm's `forward_intermediates`.
        teacher_taps: Where the teacher is tapped, one place for each of the student's.
        review_weight: Weight of the features.
        ramp: Fraction of the run over which that weight rises linearly from zero.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_taps: tuple[str, ...] = ("1", "2", "3", "pre_logits"),
        teacher_taps: tuple[str, ...] = ("1", "2", "3", "pre_logits"),
        review_weight: float = 5.0,
        ramp: float = 1 / 12,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, student_taps, teacher_taps, weights, optim)
        self.review_weight, self.ramp = review_weight, ramp

    def build(self, spec: dict[str, Any]) -> None:
        """Add a fusion for each level, from the deepest up."""
        super().build(spec)
        for shape in (shape for pair in self.shapes for shape in pair):
            if len(shape) not in (1, 3):
                raise UserError(
                    f"reviewkd reviews maps of features and pooled ones, and there is one of shape {list(shape)}: tap "
                    "by number, or `pre_logits`."
                )
        middle = min(512, self.shapes[-1][0][0])
        self.fusions = nn.ModuleList(
            Fusion(student[0], middle, teacher[0], deepest=level == 0)
            for level, (student, teacher) in enumerate(reversed(self.shapes))
        )

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `review`."""
        logits, pairs = self.forward_both(batch)
        terms, deeper = [], None
        for fusion, (student, teacher) in zip(self.fusions, reversed(pairs)):
            guess, deeper = fusion(as_map(student), deeper, as_map(teacher).shape[2:])
            terms.append(hierarchical_context(guess, as_map(teacher)))
        rise = min(1.0, self.progress / self.ramp) if self.ramp > 0 else 1.0
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "review": rise * self.review_weight * torch.stack(terms).sum(),
        }
