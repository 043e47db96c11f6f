"""One-for-All: teacher and student of any kind meet in the space of logits, at exits along the student.

    loss = CE(z_s, y) + kd_weight * L(z_s) + exit_weight * sum over taps L(exit(f_s))
    L(z) = -sum_c [(p_t[c] + y[c])^eps - y[c]] log softmax(z)[c]

Only the teacher's logits are used, so a store serves any teacher. The exits are dropped from the export. A sample
without a label takes the teacher's most likely class as y. Differences: an exit of a transformer averages its patches
and does not see the class token; the width before an exit's linear layer is the student's own last one, where the
authors take the larger of the two networks'.
Source: Hao et al., arXiv 2310.19444, eq. 4-8, and the authors' code; eps = 1.5 for ImageNet (DeiT-T -> ResNet-18), 1.0
for CIFAR-100.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.card import Card
from kdzoo.errors import UserError
from kdzoo.image.classifier import Classifier
from kdzoo.image.exits import TokenExit, map_exit
from kdzoo.losses.logits import labelled_cross_entropy, one_for_all
from kdzoo.optim import Optim
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    arxiv="2310.19444",
    year=2023,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/Hao840/OFAKD",
    tags=("logits", "heterogeneous"),
)


class OFAKD(Classifier):
    """One-for-All.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        taps: Where the student has exits, from the first stage to the last: numbers of timm's, or module paths.
        eps: One for all exits and the final logits, or one for each and the final's last.
        kd_weight: Weight of the final logits' term.
        exit_weight: Weight of the exits' terms.
        label_smoothing: Share of the label that is spread over all classes; the paper's is 0.1 on ImageNet.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        taps: tuple[str, ...] = ("1", "2", "3"),
        eps: tuple[float, ...] = (1.0,),
        kd_weight: float = 1.0,
        exit_weight: float = 1.0,
        label_smoothing: float = 0.0,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.taps, self.label_smoothing = list(taps), label_smoothing
        self.kd_weight, self.exit_weight = kd_weight, exit_weight
        self.eps = list(eps) * (len(taps) + 1) if len(eps) == 1 else list(eps)
        if len(self.eps) != len(taps) + 1 or not taps:
            raise UserError(
                f"ofa_kd has {len(taps)} exits and the final logits, but {len(eps)} values of eps: give one, or one "
                "for each and the final's last."
            )

    def build(self, spec: dict[str, Any]) -> None:
        """Add an exit at each tap; shapes are found by a dry run."""
        super().build(spec)
        shapes = self.student.tap_shapes(spec, self.taps)
        for tap, shape in shapes.items():
            if len(shape) != 3:
                raise UserError(
                    f"ofa_kd puts exits on maps of features, and '{tap}' of '{self.architecture}' is of shape "
                    f"{list(shape)}: tap by number, as timm's forward_intermediates has them."
                )
        sizes = {shape[1:] for shape in shapes.values()}
        tokens = hasattr(self.student.network, "blocks") and len(sizes) == 1 and len(self.taps) > 1
        width = shapes[self.taps[-1]][0]
        exits: list[nn.Module] = []
        for left, tap in zip(reversed(range(len(self.taps))), self.taps):
            channels, height, _ = shapes[tap]
            exits.append(
                TokenExit(channels, height, max(left, 1), spec["classes"])
                if tokens
                else map_exit(channels, left, width, spec["classes"])
            )
        self.exits = nn.ModuleList(exits)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `kd` and `exits`."""
        logits, features = self.student.forward_with(batch["image"], self.taps)
        teacher, label = self.teacher(batch), batch["label"]
        terms = [
            one_for_all(exit(features[tap]), teacher, label, eps)
            for exit, tap, eps in zip(self.exits, self.taps, self.eps)
        ]
        return {
            "ce": labelled_cross_entropy(logits, label, self.label_smoothing),
            "kd": self.kd_weight * one_for_all(logits, teacher, label, self.eps[-1]),
            "exits": self.exit_weight * torch.stack(terms).sum(),
        }
