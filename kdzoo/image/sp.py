"""Similarity-preserving distillation: samples that are alike to the teacher are alike to the student.

    loss = CE(z_s, y) + sp_weight * || G_s - G_t ||_F^2 / B^2,    G = f f^T with rows of length 1

The batch is that of all ranks together.
Source: Tung and Mori, arXiv 1907.09682, eq. 2-4 (gamma = 3000).
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import similarity_preserving
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.ranks import global_batch
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Similarity-Preserving Knowledge Distillation",
    arxiv="1907.09682",
    year=2019,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    tags=("features", "batch"),
)


class SP(Tapped):
    """Similarity-preserving distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_tap: Where the student is tapped: a module path, a number of timm's, or `pre_logits`.
        teacher_tap: Where the teacher is tapped, likewise.
        sp_weight: Weight of the similarities.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_tap: str = "-1",
        teacher_tap: str = "-1",
        sp_weight: float = 3000.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, (student_tap,), (teacher_tap,), weights, optim)
        self.sp_weight = sp_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `sp`."""
        logits, [(student, teacher)] = self.forward_both(batch)
        distance = similarity_preserving(global_batch(student.flatten(1)), global_batch(teacher.flatten(1)))
        return {"ce": labelled_cross_entropy(logits, batch["label"]), "sp": self.sp_weight * distance}
