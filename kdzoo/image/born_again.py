"""Born-again networks: each generation learns from the one before it, a network of the same architecture.

    loss of generation k = ce_weight * CE(z_k, y) + kd_weight * CE(z_k, softmax(z_(k-1)))

Every generation starts afresh and takes an equal part of the run. The first one learns from the teacher, or without one
from the labels alone. The last one is exported; the test also tells the accuracy of the ensemble of all generations,
the mean of their probabilities.
Source: Furlanello et al., arXiv 1805.04770, eq. 5 and section 3.1 (temperature 1).
"""

from typing import Any

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.generations import Generations
from kdzoo.losses.logits import labelled_cross_entropy, soft_cross_entropy
from kdzoo.metrics.percent import Percent
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Born Again Neural Networks",
    arxiv="1805.04770",
    year=2018,
    family="image",
    task="image classification",
    teacher="the generation before",
    student="any classifier",
    data="images, labelled or not",
    tags=("generations", "self-distillation"),
)


class BornAgain(Generations):
    """Born-again networks.

    Args:
        student: Any timm architecture.
        teacher: Who teaches the first generation; None: the labels.
        generations: How many there are.
        kd_weight: Weight of the generation before.
        ce_weight: Weight of the labels' term; the paper also has 0.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers | None = None,
        generations: int = 3,
        kd_weight: float = 1.0,
        ce_weight: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__([student] * generations, teacher, weights, optim)
        self.kd_weight, self.ce_weight = kd_weight, ce_weight

    def build(self, spec: dict[str, Any]) -> None:
        """Add the ensemble's score."""
        super().build(spec)
        self.ensemble_score = Percent(spec["classes"], average="micro")

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, and `kd` from the second generation on."""
        logits, before = self.student(batch["image"]), self.previous(batch)  # [B, C]
        ce = labelled_cross_entropy(logits, batch["label"])
        if before is None:
            return {"ce": ce, "idle": self.idle()}
        kd = soft_cross_entropy(logits, before.softmax(1))
        return {"ce": self.ce_weight * ce, "kd": self.kd_weight * kd, "idle": self.idle()}

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score the ensemble too."""
        super().test_step(batch, batch_idx)
        ensemble = torch.stack([member(batch["image"]).softmax(1) for member in self.members]).mean(0)
        self.ensemble_score.update(ensemble, batch["label"])
        self.log("test/ensemble_accuracy", self.ensemble_score)
