"""MEAL V2: an ensemble of teachers teaches a pre-trained student, without labels, beside a discriminator of logits.

    loss = CE(z_s, p_T) + BCE(D([z_s; mean_k z_k]), [student; teacher]),    p_T = mean_k softmax(z_k)

D is three linear layers, C -> C / 8 -> C / 64 -> 2, with a ReLU after each, the last too. It is not adversarial: the
student also lowers D's loss, which keeps it from copying the ensemble (`cooperative`, the paper's). `adversarial`
turns the gradient that reaches the student around, `off` leaves D out. D learns at a rate of its own, 1e-4 in the
paper, which the schedule respects; the released code's overwrites it with the student's. D is not exported.
Source: Shen and Savvides, arXiv 2009.08453, eq. 1-4, and the authors' code (lr 0.01, no weight decay, 180 epochs).
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import soft_cross_entropy
from kdzoo.optim import Optim
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks",
    arxiv="2009.08453",
    year=2020,
    family="image",
    task="image classification",
    teacher="several classifiers",
    student="a pre-trained classifier",
    data="images without labels",
    code="https://github.com/szq0214/MEAL-V2",
    headline="ImageNet ResNet-50: 80.67 %; ResNet-18: 69.76 -> 73.19 %",
    tags=("logits", "label-free", "ensemble"),
)


def judge(classes: int) -> nn.Sequential:
    """The discriminator: logits [B, C] to two scores, of the student and of the teachers."""
    layers: list[nn.Module] = []
    for before, after in pairwise([classes, max(2, classes // 8), max(2, classes // 64), 2]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned around."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Pass on."""
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Turn around."""
        return -gradient


class MEALV2(Classifier):
    """A label-free ensemble.

    Args:
        student: Any timm architecture.
        teacher: The ensemble: a list of `Teacher`s; one alone is possible.
        discriminator: What the student makes of the discriminator's loss.
        discriminator_lr: The discriminator's peak learning rate.
        weights: Where the student starts: a file, `pretrained` or `recipe:NAME`; None from scratch, without the
            paper's gain.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        discriminator: Literal["off", "cooperative", "adversarial"] = "cooperative",
        discriminator_lr: float = 1e-4,
        weights: str | None = None,
        optim: Optim = Optim(lr=0.01, weight_decay=0.0, milestones=(100 / 180,)),
    ) -> None:
        super().__init__(student, None, weights, optim)
        self.ensemble = sources.teachers(teacher)
        self.discriminator_mode, self.discriminator_lr = discriminator, discriminator_lr

    def prepare(self) -> None:
        """Train the teachers that are recipes and not in the cache."""
        super().prepare()
        sources.prepare(self.ensemble)

    def build(self, spec: dict[str, Any]) -> None:
        """Add each teacher by itself, for the mean is of their probabilities, and the discriminator."""
        super().build(spec)
        loaded = [sources.load([teacher], spec) for teacher in self.ensemble]
        self.experts = nn.ModuleList(teacher for teacher, _ in loaded)
        self.about = {
            "source": " + ".join(summary["source"] for _, summary in loaded),
            "hash": " + ".join(summary["hash"] for _, summary in loaded),
            "parameters": sum(summary["parameters"] for _, summary in loaded),
            "scores": loaded[0][1]["scores"] if len(loaded) == 1 else {},
        }
        classes = spec["classes"]
        self.discriminator = None if self.discriminator_mode == "off" else judge(classes)

    def teacher_summary(self) -> dict[str, Any]:
        """Say who teaches."""
        return self.about

    def predictions_of_teacher(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the ensemble's class."""
        return torch.stack([expert(batch).softmax(1) for expert in self.experts]).mean(0).argmax(1)

    def configure_optimizers(self) -> Any:
        """Give the discriminator its own learning rate."""
        groups: list[dict[str, Any]] = [{"params": list(self.student.parameters())}]
        if self.discriminator is not None:
            groups.append({"params": list(self.discriminator.parameters()), "lr": self.discriminator_lr})
        return self.optim.configure(groups, self.total_steps)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `kl` and, unless it is off, `discriminator`."""
        logits = self.student(batch["image"])  # [B, C]
        experts = torch.stack([expert(batch) for expert in self.experts])  # [K, B, C]
        terms = {"kl": soft_cross_entropy(logits, experts.softmax(2).mean(0))}
        if self.discriminator is not None:
            shown = Reversed.apply(logits) if self.discriminator_mode == "adversarial" else logits
            judged = self.discriminator(torch.cat([shown.float(), experts.mean(0)]))  # [2 B, 2]
            who = torch.arange(2, device=logits.device).repeat_interleave(len(logits))  # 0: the student
            terms["discriminator"] = binary_cross_entropy_with_logits(judged, one_hot(who, 2).float())
        return terms
