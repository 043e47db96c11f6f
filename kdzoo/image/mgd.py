"""Masked generative distillation: from a masked map of the student a small network generates the teacher's whole one.

    loss = CE(z_s, y) + mgd_weight * sum over elements (G(mask * align(f_s)) - f_t)^2 / B

G is two 3x3 convolutions around a ReLU. For classification whole channels are masked, for dense tasks places.
Source: Yang et al., arXiv 2205.01529, eq. 3-6; for classification the authors mask 15 % of the channels, weight 7e-5.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.aligner import Aligner
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Masked Generative Distillation",
    arxiv="2205.01529",
    year=2022,
    family="image",
    task="image classification",
    teacher="any classifier with maps of features",
    student="any classifier with maps of features",
    data="images, labelled or not",
    code="https://github.com/yzd-v/MGD",
    headline="ImageNet ResNet-34 -> ResNet-18: 71.58 %",
    tags=("features",),
)


class MGD(Tapped):
    """Masked generative distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_tap: Where the student is tapped: a module path or a number of timm's.
        teacher_tap: Where the teacher is tapped, likewise.
        mgd_weight: Weight of the generated map; the sum grows with its size.
        masked: Share of the channels, or places, that are masked.
        mask_of: What is masked.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    maps = True

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_tap: str = "-1",
        teacher_tap: str = "-1",
        mgd_weight: float = 7e-5,
        masked: float = 0.15,
        mask_of: Literal["channels", "places"] = "channels",
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, (student_tap,), (teacher_tap,), weights, optim)
        self.mgd_weight, self.masked, self.mask_of = mgd_weight, masked, mask_of

    def build(self, spec: dict[str, Any]) -> None:
        """Add the aligner and the generator."""
        super().build(spec)
        [(student, teacher)] = self.shapes
        channels = teacher[0]
        self.align = Aligner(student, teacher)
        self.generate = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `mgd`."""
        logits, [(student, teacher)] = self.forward_both(batch)
        aligned = self.align(student)  # [B, C, H, W]
        b, c, h, w = aligned.shape
        shape = (b, c, 1, 1) if self.mask_of == "channels" else (b, 1, h, w)
        kept = (torch.rand(shape, device=aligned.device) >= self.masked).to(aligned)
        difference = self.generate(kept * aligned) - teacher
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "mgd": self.mgd_weight * difference.square().sum() / b,
        }
