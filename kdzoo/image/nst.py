"""Neuron selectivity transfer: the channels of both networks are samples of one distribution of spatial patterns.

    loss = CE(z_s, y) + nst_weight * MMD^2(channels of f_s, channels of f_t),    kernel (x . y)^2, channels of length 1

Source: Huang and Wang, arXiv 1707.01219, eq. 5 with the polynomial kernel; weight 50 (lambda / 2 with lambda = 100).
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import neuron_selectivity
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",
    arxiv="1707.01219",
    year=2017,
    family="image",
    task="image classification",
    teacher="any classifier with maps of features",
    student="any classifier with maps of features",
    data="images, labelled or not",
    tags=("features",),
)


class NST(Tapped):
    """Neuron selectivity transfer.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_taps: Where the student is tapped: module paths, or indices of timm's `forward_intermediates`.
        teacher_taps: Where the teacher is tapped, one place for each of the student's.
        nst_weight: Weight of the discrepancy.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    maps = True

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_taps: tuple[str, ...] = ("-1",),
        teacher_taps: tuple[str, ...] = ("-1",),
        nst_weight: float = 50.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, student_taps, teacher_taps, weights, optim)
        self.nst_weight = nst_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `nst`."""
        logits, pairs = self.forward_both(batch)
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "nst": self.nst_weight * torch.stack([neuron_selectivity(*pair) for pair in pairs]).sum(),
        }
