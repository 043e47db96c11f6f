"""Probabilistic knowledge transfer: the teacher's cosine similarities within a batch, as distributions.

    loss = CE(z_s, y) + pkt_weight * mean over (i, j) of p_t(j | i) log(p_t(j | i) / p_s(j | i))

p(j | i) is the cosine similarity of samples i and j, moved to [0, 1] and divided by the row's sum. The batch is that of
all ranks together.
Source: Passalis and Tefas, arXiv 1803.10837, eq. 5-8; the mean over B^2 entries and the weight of 30000 that goes with
it are those of later comparisons.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import probabilistic_transfer
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.ranks import global_batch
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Learning Deep Representations with Probabilistic Knowledge Transfer",
    arxiv="1803.10837",
    year=2018,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/passalis/probabilistic_kt",
    tags=("features", "batch"),
)


class PKT(Tapped):
    """Probabilistic knowledge transfer.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_tap: Where the student is tapped: a module path, a number of timm's, or `pre_logits`.
        teacher_tap: Where the teacher is tapped, likewise.
        pkt_weight: Weight of the divergence.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_tap: str = "pre_logits",
        teacher_tap: str = "pre_logits",
        pkt_weight: float = 30000.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, (student_tap,), (teacher_tap,), weights, optim)
        self.pkt_weight = pkt_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `pkt`."""
        logits, [(student, teacher)] = self.forward_both(batch)
        distance = probabilistic_transfer(global_batch(student.flatten(1)), global_batch(teacher.flatten(1)))
        return {"ce": labelled_cross_entropy(logits, batch["label"]), "pkt": self.pkt_weight * distance}
