"""Differentiable quantisation: the weights of a trained student stay, and the few values that they may take learn.

    loss(w_q) = kd_weight * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) + ce_weight * CE(z_s, y)
    w_q = a * p_(nearest to v) + b,    v = (w - b) / a
    p_j <- p_j - lr * sum over the weights nearest to p_j of a * dloss/dw_q

Every tensor has points p of its own, which start at the quantiles of its scaled weights. A tensor whose gradient is
large gets more of them: half of 2^bits goes to each, the rest by the norms of the gradients of the cross-entropy, mean
over `gradient_batches` batches. The teacher of the distillation term is the student before it is quantised. Batch
normalisation's statistics go on, and are exported with the points.
Difference: a tensor never has more points than values.
Source: Polino, Pascanu and Alistarh, arXiv 1802.05668, algorithm 2 and section 3.3, and the authors' code (points at a
learning rate of 1e-5 without weight decay, 20 epochs, 5 batches for the gradients).
"""

from copy import deepcopy
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.quantised import Quantised
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.ranks import of_all_ranks
from kdzoo.students.quantised import LearnedPoints, check_bits, quantise, shared_out
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teacher

CARD = Card(
    title="Model compression via distillation and quantization",
    arxiv="1802.05668",
    year=2018,
    family="image",
    task="image classification",
    teacher="the student before it is quantised",
    student="a trained classifier",
    data="images, labelled or not",
    code="https://github.com/antspy/quantized_distillation",
    tags=("logits", "quantisation"),
)


class DiffQuant(Quantised):
    """Differentiable quantisation.

    Args:
        start: The trained student: the name of a config that trains it, or a `Teacher`.
        bits: 2^bits points are the budget of a tensor.
        bucket: How many weights share a range.
        allocation: Points by the gradients' norms, or as many for each tensor.
        gradient_batches: How many batches the norms are of.
        first_and_last: Whether the first layer and the classifier are quantised as well.
        temperature: T, what the logits are divided by.
        kd_weight: Weight of the unquantised student's term.
        ce_weight: Weight of the labels' term.
        optim: The optimizer of the points and its schedule.
    """

    def __init__(
        self,
        start: str | Teacher,
        bits: int = 4,
        bucket: int = 256,
        allocation: Literal["gradient", "equal"] = "gradient",
        gradient_batches: int = 5,
        first_and_last: bool = True,
        temperature: float = 2.0,
        kd_weight: float = 0.7,
        ce_weight: float = 0.3,
        optim: Optim = Optim(lr=1e-5, weight_decay=0.0, schedule="constant"),
    ) -> None:
        super().__init__("", start, None, optim)
        check_bits(bits, bucket)
        self.bits, self.bucket = bits, bucket
        self.allocation, self.gradient_batches, self.first_and_last = allocation, gradient_batches, first_and_last
        self.temperature, self.kd_weight, self.ce_weight = temperature, kd_weight, ce_weight

    def make_student(self, spec: dict[str, Any]) -> None:
        """Take the trained student; only its points learn."""
        self.student, _ = sources.network_of(self.teachers[0], spec)
        self.student.requires_grad_(False)
        self.architecture = self.student.architecture
        budget, tensors = 2**self.bits, len(list(self.student.parameters()))
        most = budget // 2 * (tensors + 1)  # all that can be had
        self.quantised = quantise(
            self.student.network,
            lambda weight: LearnedPoints(weight, budget, most, self.bucket),
            self.first_and_last,
        )

    def on_train_start(self) -> None:
        """Share out the points, once."""
        if self.allocation == "gradient" and self.trainer.global_step == 0:
            loader: Any = self.trainer.train_dataloader
            batches = islice(loader, self.gradient_batches)
            self.share_out([self.trainer.strategy.batch_to_device(batch, self.device) for batch in batches])

    def share_out(self, batches: list[dict[str, Tensor]]) -> None:
        """Give every tensor points by the norm of the unquantised student's gradient, mean over the batches."""
        network = deepcopy(self.teacher.networks[0]).requires_grad_(True)
        parameters = dict(network.network.named_parameters())
        with torch.enable_grad():
            for batch in batches:
                loss = labelled_cross_entropy(network(batch["image"]), batch["label"]) / len(batches)
                loss.backward()
        # The gradient of the global batches, then its norm.
        gradients = of_all_ranks({name: parameters[name].grad.cpu() for name in self.quantised})
        norms = [float(torch.stack([own[name] for own in gradients]).mean(0).norm()) for name in self.quantised]
        for (name, points), count in zip(self.quantised.items(), shared_out(2**self.bits, norms)):
            points.place(parameters[name].detach(), count)  # type: ignore[operator]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `kd`."""
        student_logits = self.student(batch["image"])  # [B, C]
        teacher_logits = self.teacher(batch)  # [B, C]
        return {
            "ce": self.ce_weight * labelled_cross_entropy(student_logits, batch["label"]),
            "kd": self.kd_weight * kd(student_logits, teacher_logits, self.temperature),
        }
