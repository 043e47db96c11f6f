"""Attention transfer: where the teacher looks, at the end of every stage.

    loss = CE(z_s, y) + at_weight * sum over stages || Q_s - Q_t ||^2 / (H W),    Q = mean_c f^2, flat, of length 1

Source: Zagoruyko and Komodakis, arXiv 1612.03928, eq. 2 (p = 2); the weight of 1000 goes with the mean of squares, as
in later comparisons, where the paper has a norm and a beta of its own.
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import attention_transfer
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title=(
        "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer"
    ),
    arxiv="1612.03928",
    year=2017,
    family="image",
    task="image classification",
    teacher="any classifier with maps of features",
    student="any classifier with maps of features",
    data="images, labelled or not",
    code="https://github.com/szagoruyko/attention-transfer",
    tags=("features",),
)


class AT(Tapped):
    """Attention transfer.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_taps: Where the student is tapped: module paths, or indices of timm's `forward_intermediates`.
        teacher_taps: Where the teacher is tapped, one place for each of the student's.
        at_weight: Weight of the attention term.
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
        at_weight: float = 1000.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, student_taps, teacher_taps, weights, optim)
        self.at_weight = at_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `at`."""
        logits, pairs = self.forward_both(batch)
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "at": self.at_weight * torch.stack([attention_transfer(*pair) for pair in pairs]).sum(),
        }
