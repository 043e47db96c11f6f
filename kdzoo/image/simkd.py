"""Reused teacher classifier: the student learns the teacher's last map, and then speaks with the teacher's own head.

    loss = || proj(f_s) - f_t ||^2 / (C H W);    at inference  z = W_t mean_hw proj(f_s) + b_t

The projector (1x1, 3x3 and 1x1 convolutions with batch normalisation and ReLU) and the head stay in the student: its
size counts them. No label is needed.
Source: Chen et al., arXiv 2203.14001, eq. 3-4 (reduction factor 2).
"""

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.export.image import export_composed_network
from kdzoo.image.linear_head import LinearHead
from kdzoo.image.tapped import Tapped
from kdzoo.losses.features import hint, one_size
from kdzoo.optim import Optim
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Knowledge Distillation with the Reused Teacher Classifier",
    arxiv="2203.14001",
    year=2022,
    family="image",
    task="image classification",
    teacher="a convolutional classifier",
    student="any classifier with maps of features",
    data="images, labelled or not",
    code="https://github.com/DefangChen/SimKD",
    headline="CIFAR-100 ResNet32x4 -> ResNet8x4: 78.08 %",
    tags=("features", "label-free"),
)


class Reused(nn.Module):
    """A body, a projector to the teacher's last map, and the teacher's classifier.

    Args:
        body: A timm network without a head.
        channels: Of its last map.
        target: Channels of the teacher's.
        factor: How many times narrower than that the middle is.
        size: Height and width at which the maps are compared.
        classifier: The teacher's, frozen.
    """

    def __init__(
        self, body: Any, channels: int, target: int, factor: int, size: tuple[int, int], classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.body, self.size, self.classifier = body, size, classifier
        middle = max(1, target // factor)
        layers: list[nn.Module] = []
        for before, after, kernel in (channels, middle, 1), (middle, middle, 3), (middle, target, 1):
            layers += [nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(after)]
            layers.append(nn.ReLU())
        self.projector = nn.Sequential(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        """The guess of the teacher's last map, [B, target, H, W]."""
        return self.projector(adaptive_avg_pool2d(self.body.forward_features(x), self.size))

    def forward_head(self, feature: Tensor, pre_logits: bool = False) -> Tensor:
        """What the teacher's classifier makes of it."""
        pooled = feature.mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images to logits."""
        return self.forward_head(self.forward_features(x))


class SimKD(Tapped):
    """The teacher's classifier, reused.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        factor: How many times narrower the projector's middle is than the teacher's map.
        feature_weight: Weight of the features.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    maps = True

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        factor: int = 2,
        feature_weight: float = 1.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, ("features",), ("features",), weights, optim)
        self.factor, self.feature_weight = factor, feature_weight

    def build(self, spec: dict[str, Any]) -> None:
        """Put projector and head onto the student's body."""
        super().build(spec)
        if len(self.teacher.networks) > 1:
            raise UserError("simkd takes over one teacher's classifier: give a single teacher.")
        self.teacher.check_head()
        teacher, [(student_shape, teacher_shape)] = self.teacher.networks[0], self.shapes
        classifier = copy.deepcopy(LinearHead(teacher).classifier).requires_grad_(False).train()
        height, width = (min(pair) for pair in zip(student_shape[1:], teacher_shape[1:]))
        body: Any = self.student.network
        body.reset_classifier(0)
        reused = Reused(body, student_shape[0], teacher_shape[0], self.factor, (height, width), classifier)
        mean, std = (each.flatten().tolist() for each in (self.student.mean, self.student.std))
        self.student = ImageNetwork(self.architecture, reused, mean, std)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `feature`."""
        _, [(projected, teacher)] = self.forward_both(batch)
        return {"feature": self.feature_weight * hint(*one_size(projected, teacher))}

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write ONNX: body, projector and head together are no architecture of timm's."""
        about = f"{self.architecture} with the projector and the classifier of simkd"
        return export_composed_network(self.student, dict(self.spec or {}), folder, about)
