"""Channel-wise distillation: each class's map of scores is compared as a distribution over the places of the image.

    loss = CE(f_s(x), y) + aux_weight * CE(auxiliary head, y) + cwd_weight * CWD(f_s(x), f_t(x))

    CWD(s, t) = T^2 / (B C) * sum over images and classes of KL(softmax(t / T) || softmax(s / T)), softmax over H W

on the scores before they are interpolated to the image's size. A teacher's map of another size is interpolated to the
student's. This is the paper's variant on scores; the one on features is not here.
Source: Shu, Liu, Gao, Yan and Shen, arXiv 2011.13256, section 3; T = 4 and weight 3 are the authors' for scores.
"""

from torch import Tensor

from kdzoo.card import Card
from kdzoo.dense.segmenter import POLY, Segmenter, Start
from kdzoo.losses.dense import channel_wise
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Channel-wise Knowledge Distillation for Dense Prediction",
    arxiv="2011.13256",
    year=2021,
    family="dense",
    task="semantic segmentation",
    teacher="any segmentation network for the same classes",
    student="any segmentation network",
    data="images with masks",
    tags=("segmentation", "logits", "baseline"),
)


class CWD(Segmenter):
    """Channel-wise distillation of scores.

    Args:
        student: A segmentation network: `unet_110k`, `deeplabv3_resnet18` ...
        teacher: A recipe's name, a `Teacher`, or several.
        cwd_weight: Weight of the teacher's term.
        temperature: T, what the scores are divided by.
        aux_weight: Weight of the auxiliary head's cross-entropy.
        start: A run or a recipe whose network the student starts from; None where it starts anew.
        weights: What the encoder of a new student starts from: `pretrained` (timm's), or a file of weights; None from
            scratch.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        cwd_weight: float = 3.0,
        temperature: float = 4.0,
        aux_weight: float = 0.4,
        start: Start | None = None,
        weights: str | None = None,
        optim: Optim = POLY,
    ) -> None:
        super().__init__(student, teacher, start, weights, optim)
        self.cwd_weight, self.temperature, self.aux_weight = cwd_weight, temperature, aux_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `cwd`, and `aux_ce` if there is an auxiliary head."""
        scores, auxiliary = self.student.scores(batch["image"])  # [B, C, h, w]
        taught = self.teacher_scores({"image": batch["image"]}, scores)
        return {
            **self.cross_entropies(scores, auxiliary, batch["mask"], self.aux_weight),
            "cwd": self.cwd_weight * channel_wise(scores, taught, self.temperature),
        }
