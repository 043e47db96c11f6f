"""Knowledge distillation: the student learns the teacher's softened probabilities beside the labels.

    loss = ce_weight * CE(z_s, y) + kd_weight * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))

Samples without a label (y = -1) take part in the second term alone.
Source: Hinton, Vinyals and Dean, arXiv 1503.02531, section 2; the weights 0.1 and 0.9 are the CIFAR protocol's.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Distilling the Knowledge in a Neural Network",
    arxiv="1503.02531",
    year=2015,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    tags=("logits", "label-free"),
)


class KD(Classifier):
    """Hinton's distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        temperature: T, what the logits are divided by; larger is softer.
        kd_weight: Weight of the teacher's term.
        ce_weight: Weight of the labels' term.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        temperature: float = 4.0,
        kd_weight: float = 0.9,
        ce_weight: float = 0.1,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.temperature, self.kd_weight, self.ce_weight = temperature, kd_weight, ce_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `kd`."""
        student_logits = self.student(batch["image"])  # [B, C]
        teacher_logits = self.teacher(batch)  # [B, C]
        return {
            "ce": self.ce_weight * labelled_cross_entropy(student_logits, batch["label"]),
            "kd": self.kd_weight * kd(student_logits, teacher_logits, self.temperature),
        }
