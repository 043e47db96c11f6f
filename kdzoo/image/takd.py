"""Teacher assistants: a chain of networks of falling size between the teacher and the student.

    loss of each = ce_weight * CE(z, y) + kd_weight * T^2 KL(softmax(z_above / T) || softmax(z / T))

The first assistant learns from the teacher, the next one from that assistant, and so on to the student; each takes an
equal part of the run.
Source: Mirzadeh et al., arXiv 1902.03393, section 3 (lambda and T are tuned for each pair there).
"""

from collections.abc import Sequence

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.generations import Generations
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Improved Knowledge Distillation via Teacher Assistant",
    arxiv="1902.03393",
    year=2020,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/imirzadeh/Teacher-Assistant-Knowledge-Distillation",
    tags=("logits", "generations"),
)


class TAKD(Generations):
    """A chain of assistants.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        assistants: Architectures between teacher and student, from the largest down.
        temperature: T, what the logits are divided by.
        kd_weight: Weight of the term of the one above.
        ce_weight: Weight of the labels' term.
        weights: Where the first assistant starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        assistants: Sequence[str],
        temperature: float = 4.0,
        kd_weight: float = 0.9,
        ce_weight: float = 0.1,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__([*assistants, student], teacher, weights, optim)
        self.temperature, self.kd_weight, self.ce_weight = temperature, kd_weight, ce_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `kd` of the network whose turn it is."""
        logits, above = self.student(batch["image"]), self.previous(batch)  # [B, C]
        assert above is not None  # there is a teacher
        return {
            "ce": self.ce_weight * labelled_cross_entropy(logits, batch["label"]),
            "kd": self.kd_weight * kd(logits, above, self.temperature),
            "idle": self.idle(),
        }
