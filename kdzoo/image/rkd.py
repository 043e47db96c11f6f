"""Relational distillation: distances between samples and angles in triples of them, in the embedding before the head.

    loss = CE(z_s, y) + distance_weight * huber(psi_D) + angle_weight * huber(psi_A)

The batch is that of all ranks together; the angles take memory of its size cubed.
Source: Park et al., arXiv 1904.05068, eq. 3-10 (weights 25 and 50).
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import relational_angle, relational_distance
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.ranks import global_batch
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Relational Knowledge Distillation",
    arxiv="1904.05068",
    year=2019,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/lenscloth/RKD",
    tags=("features", "batch"),
)


class RKD(Tapped):
    """Relational distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_tap: Where the student is tapped: a module path, a number of timm's, or `pre_logits`.
        teacher_tap: Where the teacher is tapped, likewise.
        distance_weight: Weight of the distances.
        angle_weight: Weight of the angles.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_tap: str = "pre_logits",
        teacher_tap: str = "pre_logits",
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, (student_tap,), (teacher_tap,), weights, optim)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `distance` and `angle`."""
        logits, [(student, teacher)] = self.forward_both(batch)
        student, teacher = global_batch(student.flatten(1)), global_batch(teacher.flatten(1))  # [B, D_s], [B, D_t]
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "distance": self.distance_weight * relational_distance(student, teacher),
            "angle": self.angle_weight * relational_angle(student, teacher),
        }
