"""Class attention transfer: where each class is seen, class by class, as both networks' own classifiers say.

    loss = CE(z_s, y) + cat_weight * || N(CAM_s) - N(CAM_t) ||^2 / (C H W),    CAM = the classifier at every place

Maps are averaged to a grid of 2 x 2, then each class's has length 1. Networks must classify by average pooling and one
linear layer, so that the mean of a class's map is its logit.
Source: Guo et al., CVPR 2023, "Class Attention Transfer Based Knowledge Distillation", eq. 4-5; the
weight depends on the pair, and 400 is not the authors' for all of them.
"""

from typing import Any

from torch import Tensor

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.linear_head import LinearHead
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import class_attention
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Class Attention Transfer Based Knowledge Distillation",
    year=2023,
    family="image",
    task="image classification",
    teacher="a convolutional classifier",
    student="a convolutional classifier",
    data="images, labelled or not",
    code="https://github.com/GzyAftermath/CAT-KD",
    tags=("features",),
)


class CATKD(Tapped):
    """Class attention transfer.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        cat_weight: Weight of the class attention.
        grid: Height and width at which maps are compared.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    maps = True

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        cat_weight: float = 400.0,
        grid: int = 2,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, ("features",), ("features",), weights, optim)
        self.cat_weight, self.grid = cat_weight, grid

    def build(self, spec: dict[str, Any]) -> None:
        """Find both classifiers."""
        super().build(spec)
        if len(self.teacher.networks) > 1:
            raise UserError("cat_kd reads one teacher's classifier: give a single teacher.")
        self.teacher.check_head()
        self.heads = LinearHead(self.student), LinearHead(self.teacher.networks[0])

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `cat`."""
        logits, [pair] = self.forward_both(batch)
        student, teacher = (head.everywhere(feature) for head, feature in zip(self.heads, pair))
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "cat": self.cat_weight * class_attention(student, teacher, self.grid),
        }
