"""Example: one sentence on what is new.

    loss = CE(z_s, y) + weight * KL(softmax(z_t) || softmax(z_s))

Source: the paper, and what differs from it and why.
"""

from torch import Tensor
from torch.nn.functional import kl_div

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Example",
    year=2026,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    tags=("logits",),
)


def teacher_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compare the student's probabilities with the teacher's.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].

    Returns:
        The mean over the batch of KL(teacher || student), a scalar >= 0, in nats.
    """
    return kl_div(student_logits.log_softmax(1), teacher_logits.log_softmax(1), reduction="batchmean", log_target=True)


class Example(Classifier):
    """One line on the method.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        weight: Weight of the teacher's term.
        weights: Where the student starts: a file, `pretrained`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        weight: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.weight = weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `teacher`, each a scalar."""
        student_logits = self.student(batch["image"])  # [B, C]
        teacher_logits = self.teacher(batch)  # [B, C]
        return {
            "ce": labelled_cross_entropy(student_logits, batch["label"]),
            "teacher": self.weight * teacher_divergence(student_logits, teacher_logits),
        }
