"""Plain supervised segmentation: the baseline of the methods that segment, and the recipe of their teachers.

    loss = CE(f(x), y) + aux_weight * CE(auxiliary head, y)

Pixels without a class are left out. The second term is there where the network has an auxiliary head.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.dense.segmenter import POLY, Segmenter, Start
from kdzoo.optim import Optim

CARD = Card(
    title="Supervised segmentation",
    year=2015,
    family="dense",
    task="semantic segmentation",
    student="any segmentation network",
    data="images with masks",
    tags=("segmentation", "baseline", "teacher"),
)


class SupervisedSeg(Segmenter):
    """Cross-entropy on the pixels' labels.

    Args:
        student: A segmentation network: `unet_110k`, `deeplabv3_resnet18` ...
        aux_weight: Weight of the auxiliary head's cross-entropy.
        start: A run or a recipe whose network the network starts from; None where it starts anew.
        weights: What the encoder of a new network starts from: `pretrained` (timm's), or a file of weights; None from
            scratch.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        aux_weight: float = 0.4,
        start: Start | None = None,
        weights: str | None = None,
        optim: Optim = POLY,
    ) -> None:
        super().__init__(student, None, start, weights, optim)
        self.aux_weight = aux_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, and `aux_ce` if there is an auxiliary head."""
        return self.cross_entropies(*self.student.scores(batch["image"]), batch["mask"], self.aux_weight)
