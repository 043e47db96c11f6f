"""Plain supervised training: the baseline of every image method, and the recipe of its teachers.

    loss = CE(z_s, y), with label smoothing if asked for

Samples without a label are left out.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim

CARD = Card(
    title="Supervised training",
    year=2012,
    family="image",
    task="image classification",
    student="any classifier",
    data="labelled images",
    tags=("baseline", "teacher"),
)


class Supervised(Classifier):
    """Cross-entropy on the labels.

    Args:
        student: Any timm architecture.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        weights: Where the network starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self, student: str, label_smoothing: float = 0.0, weights: str | None = None, optim: Optim = Optim()
    ) -> None:
        super().__init__(student, None, weights, optim)
        self.label_smoothing = label_smoothing

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`."""
        return {"ce": labelled_cross_entropy(self.student(batch["image"]), batch["label"], self.label_smoothing)}
