"""Normalized knowledge distillation: the teacher's confidence weighs the label, its other classes are compared alone.

    loss = CE(z_s, y) - p_t(y) log p_s(y) + gamma * T^2 * CE(q_t, q_s)

q is the distribution among the classes other than y, normalised on its own. A sample without a label takes the
teacher's most likely class as y in the last two terms, and no part in the first.
Source: Yang et al., arXiv 2303.13005, eq. 8; gamma = 1.5 and T = 1 are the authors' for ImageNet.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import labelled_cross_entropy, normalized_kd
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss",
    arxiv="2303.13005",
    year=2023,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/yzd-v/cls_KD",
    tags=("logits",),
)


class NKD(Classifier):
    """Normalized knowledge distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        gamma: Weight of the term among the other classes.
        temperature: T of that term.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        gamma: float = 1.5,
        temperature: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.gamma, self.temperature = gamma, temperature

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `nkd`."""
        logits, label = self.student(batch["image"]), batch["label"]  # [B, C], [B]
        return {
            "ce": labelled_cross_entropy(logits, label),
            "nkd": normalized_kd(logits, self.teacher(batch), label, self.gamma, self.temperature),
        }
