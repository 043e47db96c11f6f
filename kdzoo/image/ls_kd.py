"""Logit standardisation: distillation of z-scored logits, so that the student need not match the teacher's scale.

    loss = ce_weight * CE(z_s, y) + kd_weight * D(Z(z_s), Z(z_t)),    Z(z) = (z - mean(z)) / std(z) for each sample

D is `kd` (T^2 KL at temperature T) or `dkd` (T^2 (alpha TCKD + beta NCKD)). The weight of 9 is part of the gain.
With `dkd` the released script sets beta to alpha times 9 after alpha was multiplied by 9 itself; here kd_weight
multiplies both.
Source: Sun et al., arXiv 2403.01427, algorithm 1, and the authors' script (T = 2, weight 9).
"""

from typing import Literal

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import decoupled_kd, kd, labelled_cross_entropy, standardised
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Logit Standardization in Knowledge Distillation",
    arxiv="2403.01427",
    year=2024,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/sunshangquan/logit-standardization-KD",
    headline="CIFAR-100 ResNet32x4 -> ResNet8x4: 76.62 % (KD 73.33 %)",
    tags=("logits",),
)


class LSKD(Classifier):
    """Distillation of standardised logits.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        base: What is standardised: `kd` or `dkd`.
        temperature: T, what the standardised logits are divided by.
        kd_weight: Weight of the teacher's term.
        ce_weight: Weight of the labels' term; the authors' is 0.1 with kd and 1 with dkd.
        alpha: With dkd: weight of the target class.
        beta: With dkd: weight of the other classes.
        ramp: With dkd: fraction of the run over which its term rises linearly from zero.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        base: Literal["kd", "dkd"] = "kd",
        temperature: float = 2.0,
        kd_weight: float = 9.0,
        ce_weight: float = 0.1,
        alpha: float = 1.0,
        beta: float = 1.0,
        ramp: float = 1 / 12,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.base, self.temperature, self.kd_weight, self.ce_weight = base, temperature, kd_weight, ce_weight
        self.alpha, self.beta, self.ramp = alpha, beta, ramp

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and the base's term."""
        logits, label = self.student(batch["image"]), batch["label"]  # [B, C], [B]
        student, teacher = standardised(logits), standardised(self.teacher(batch))
        if self.base == "kd":
            distance = kd(student, teacher, self.temperature)
        else:
            rise = min(1.0, self.progress / self.ramp) if self.ramp > 0 else 1.0
            distance = rise * decoupled_kd(student, teacher, label, self.alpha, self.beta, self.temperature)
        return {"ce": self.ce_weight * labelled_cross_entropy(logits, label), self.base: self.kd_weight * distance}
