"""Decoupled knowledge distillation: target and non-target classes weighted apart.

    loss = CE(z_s, y) + ramp * (alpha * TCKD + beta * NCKD)

TCKD compares the probability of the true class against all others; NCKD compares the distribution among the others.
With alpha = 1 and beta = 1 - p_t(y) the sum is classical KD (eq. 7). A sample without a label takes the teacher's
most likely class as y in the second part, and no part in the first.
Source: Zhao et al., arXiv 2203.08679, eq. 7-9; the linear ramp (20 of 240 epochs) follows the authors' code, where it
counts whole epochs from one; here it grows by the step.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import decoupled_kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Decoupled Knowledge Distillation",
    arxiv="2203.08679",
    year=2022,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/megvii-research/mdistiller",
    headline="CIFAR-100 ResNet32x4 -> ResNet8x4: 76.32 % (KD 73.33 %)",
    tags=("logits",),
)


class DKD(Classifier):
    """Decoupled knowledge distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target term; the authors choose 1 to 8 by the pair of networks.
        temperature: What the logits are divided by.
        ramp: Fraction of the run over which the distillation terms rise linearly from zero.
        ce_weight: Weight of the labels' term.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        ramp: float = 1 / 12,
        ce_weight: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.ramp, self.ce_weight = ramp, ce_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `dkd`."""
        student_logits = self.student(batch["image"])  # [B, C]
        teacher_logits = self.teacher(batch)  # [B, C]
        distance = decoupled_kd(student_logits, teacher_logits, batch["label"], self.alpha, self.beta, self.temperature)
        rise = min(1.0, self.progress / self.ramp) if self.ramp > 0 else 1.0
        return {
            "ce": self.ce_weight * labelled_cross_entropy(student_logits, batch["label"]),
            "dkd": rise * distance,
        }
