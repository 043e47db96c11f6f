"""DIST: correlations instead of exact probabilities, between classes and between samples.

    loss = CE(z_s, y) + T^2 (beta (1 - mean_i rho(p_s[i, :], p_t[i, :])) + gamma (1 - mean_c rho(p_s[:, c], p_t[:, c])))

rho is Pearson's correlation; the second term compares the samples of the batch, that of all ranks together.
Source: Huang et al., arXiv 2205.10536, eq. 8-11; beta = gamma = 1 and T = 1 are the paper's for ImageNet.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import labelled_cross_entropy, relational_kd
from kdzoo.optim import Optim
from kdzoo.ranks import global_batch
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Knowledge Distillation from A Stronger Teacher",
    arxiv="2205.10536",
    year=2022,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/hunto/DIST_KD",
    headline="ImageNet ResNet-34 -> ResNet-18: 72.07 %",
    tags=("logits", "batch"),
)


class DIST(Classifier):
    """Distillation from a stronger teacher.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        beta: Weight of the correlation between classes.
        gamma: Weight of the correlation between samples.
        temperature: T, what the logits are divided by.
        ce_weight: Weight of the labels' term.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        ce_weight: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.beta, self.gamma, self.temperature, self.ce_weight = beta, gamma, temperature, ce_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `dist`."""
        logits = self.student(batch["image"])  # [B, C]
        all_logits, all_teacher = global_batch(logits), global_batch(self.teacher(batch))
        return {
            "ce": self.ce_weight * labelled_cross_entropy(logits, batch["label"]),
            "dist": relational_kd(all_logits, all_teacher, self.beta, self.gamma, self.temperature),
        }
