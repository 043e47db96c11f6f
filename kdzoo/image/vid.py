"""Variational information distillation: the student guesses the teacher's maps, and how sure it is of each channel.

    loss = CE(z_s, y) + vid_weight * sum over stages 0.5 mean[(mu(f_s) - f_t)^2 / var_c + log var_c]

mu is three 1x1 convolutions with ReLU between them; var_c = softplus(alpha_c) + 1e-5 is learned for each channel. In a
well-known zoo the variances are in no optimizer and stay as they start; here they are trained, as in the paper.
Source: Ahn et al., arXiv 1904.05835, eq. 3-5 (initial variance 5).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import gaussian_nll, one_size
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Variational Information Distillation for Knowledge Transfer",
    arxiv="1904.05835",
    year=2019,
    family="image",
    task="image classification",
    teacher="any classifier with maps of features",
    student="any classifier with maps of features",
    data="images, labelled or not",
    tags=("features",),
)


EPS = 1e-5  # of the variances


class Guess(nn.Module):
    """A normal distribution of the teacher's map, given the student's.

    Args:
        channels: The student's.
        target: The teacher's channels.
        variance: What the variances start at.
    """

    def __init__(self, channels: int, target: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, target, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(target, target, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(target, target, 1, bias=False),
        )
        self.alpha = nn.Parameter(torch.full((target, 1, 1), math.log(math.expm1(variance - EPS))))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [B, C, H, W], the target at the same size, and the variance [C, 1, 1]."""
        student_map, teacher_map = one_size(student_map, teacher_map)
        return self.mean(student_map), teacher_map, softplus(self.alpha) + EPS


class VID(Tapped):
    """Variational information distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_taps: Where the student is tapped: module paths, or indices of timm's `forward_intermediates`.
        teacher_taps: Where the teacher is tapped, one place for each of the student's.
        vid_weight: Weight of the likelihood.
        variance: What the variances start at.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    maps = True

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_taps: tuple[str, ...] = ("1", "2", "3"),
        teacher_taps: tuple[str, ...] = ("1", "2", "3"),
        vid_weight: float = 1.0,
        variance: float = 5.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, student_taps, teacher_taps, weights, optim)
        self.vid_weight, self.variance = vid_weight, variance

    def build(self, spec: dict[str, Any]) -> None:
        """Add a guess of each of the teacher's maps."""
        super().build(spec)
        self.guesses = nn.ModuleList(Guess(student[0], teacher[0], self.variance) for student, teacher in self.shapes)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `vid`."""
        logits, pairs = self.forward_both(batch)
        terms = [gaussian_nll(*guess(*pair)) for guess, pair in zip(self.guesses, pairs)]
        return {"ce": labelled_cross_entropy(logits, batch["label"]), "vid": self.vid_weight * torch.stack(terms).sum()}
