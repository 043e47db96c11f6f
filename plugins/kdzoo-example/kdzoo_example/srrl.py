"""Softmax regression representation learning: the student's feature must serve the teacher's own classifier.

    loss = CE(z_s, y) + fm_weight * || h_t - h_s ||^2 + sr_weight * || W_t h_t - W_t h_s ||^2     (means over elements)

h_t is the teacher's pooled feature, W_t its frozen classifier, h_s the pooled output of a connector (1x1 convolution,
normalisation, ReLU) on the student's last feature map.
The authors' code puts a difference of channel statistics in the place of the feature-matching term; here it is in.
Source: Yang et al., ICLR 2021 (openreview ZzwDy_wiWv), eq. 3 and 6.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Knowledge Distillation via Softmax Regression Representation Learning",
    year=2021,
    family="image",
    task="image classification",
    teacher="a classifier with a map of features before its pooling",
    student="a classifier with a map of features before its pooling",
    data="images, labelled or not",
    code="https://github.com/jingyang2017/KD_SRRL",
    tags=("features",),
)


class SRRL(Classifier):
    """Softmax regression representation learning.

    Args:
        student: Any timm architecture whose last feature is a map.
        teacher: A recipe's name, a `Teacher`, or several.
        fm_weight: Weight of the feature-matching term.
        sr_weight: Weight of the term behind the teacher's classifier.
        weights: Where the student starts: a file, `pretrained`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        fm_weight: float = 1.0,
        sr_weight: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.fm_weight, self.sr_weight = fm_weight, sr_weight

    def build(self, spec: dict[str, Any]) -> None:
        """Add the connector, between channels found by a dry run."""
        super().build(spec)
        shapes = [
            network.tap_shapes(spec, ["features"])["features"] for network in (self.student, self.teacher.networks[0])
        ]
        if any(len(shape) != 3 for shape in shapes):
            raise UserError(
                f"srrl needs maps of features before the pooling, and these networks have {shapes}: use CNNs."
            )
        channels, teacher_channels = shapes[0][0], shapes[1][0]
        self.connector = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(teacher_channels),
            nn.ReLU(),
        )

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `fm` and `sr`."""
        student_logits, taps = self.student.forward_with(batch["image"], ["features"])
        connected = self.connector(taps["features"])  # [B, D_t, H, W]
        taught = self.teacher.features(batch, ["pre_logits", "logits"])  # [B, D_t] and [B, C]
        head = self.teacher.networks[0].forward_head  # W_t is frozen, its input is not
        return {
            "ce": labelled_cross_entropy(student_logits, batch["label"]),
            "fm": self.fm_weight * mse_loss(head(connected, pre_logits=True), taught["pre_logits"]),
            "sr": self.sr_weight * mse_loss(head(connected), taught["logits"]),
        }
