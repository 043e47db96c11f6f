"""Iterated self-distillation: every step is a fresh network for a mix of the ground truth and the step before it.

    loss of step t = a_t MSE(p_t, y) + (1 - a_t) MSE(p_t, p_(t-1)),    p = softmax(z), a_1 = 1
    a_t* = <y - q_t, p_1 - q_t> / |p_1 - q_t|^2    on the validation part;  q_t: trained with a = 0

Without ground truth the steps regularise ever more and collapse; with it they lead to an amplified penalty. The best
weight needs no grid: a network for a = 1 is there, the first one, and one for a = 0 is trained in each step. All
networks get an equal part of the run, with the same penalty, data and schedule. `iter_self_distill_kernel` is the same
for kernel ridge regression, where every step has a closed form.
Source: Borup and Andersen, arXiv 2102.13088, algorithm 1, and the authors' code (ResNet-50 on CIFAR-10, Adam with
1e-4, batches of 16, 75 epochs a network, four steps). Their penalty is the sum of the weights' norms, here it is
weight decay. A sample without a label has no part in the first term.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, one_hot

from kdzoo.card import Card
from kdzoo.datamodules.parts import validation_part
from kdzoo.errors import UserError
from kdzoo.image.generations import Generations
from kdzoo.image.self_distillation import best_weight
from kdzoo.metrics.percent import Percent
from kdzoo.optim import Optim

CARD = Card(
    title="Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
    arxiv="2102.13088",
    year=2021,
    family="image",
    task="image classification",
    teacher="the step before",
    student="any classifier",
    data="images, labelled or not",
    code="https://github.com/Kennethborup/self_distillation",
    tags=("generations", "self-distillation"),
)


class IterSelfDistill(Generations):
    """Iterated self-distillation of networks.

    Args:
        student: Any timm architecture.
        steps: Distillation steps after the first training.
        alpha: Weight of the ground truth in every step; None: the best one, estimated on the validation part, for
            which a second network is trained in each step.
        clip: Keep an estimated weight in [0, 1].
        weights: Where the first network starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule, which starts anew with each network.

    Attributes:
        estimated: The weight of each step as it was estimated, before it is clipped; NaN where it was not yet.
    """

    estimated: Tensor

    def __init__(
        self,
        student: str,
        steps: int = 4,
        alpha: float | None = None,
        clip: bool = True,
        weights: str | None = None,
        optim: Optim = Optim(name="adam", lr=1e-4, weight_decay=1e-4, schedule="constant"),
    ) -> None:
        if steps < 0:
            raise UserError(f"iter_self_distill has steps={steps}: use 0 (the first network alone) or more.")
        # Of a step with an estimated weight: the network for a = 0, then the one for the weight found.
        self.turns = 2 if alpha is None else 1
        super().__init__([student] * (1 + self.turns * steps), None, weights, optim)
        self.alpha, self.clip, self.steps = alpha, clip, steps

    def build(self, spec: dict[str, Any]) -> None:
        """Add the weights that are estimated, and the first network's score."""
        super().build(spec)
        self.register_buffer("estimated", torch.full((self.steps,), torch.nan))
        self.classes = spec["classes"]
        self.first_score = Percent(self.classes, average="micro")

    def on_fit_start(self) -> None:
        """Check that there is something to estimate the weight on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.alpha is None and self.steps and not data.val_dataloader():
            raise UserError(
                "iter_self_distill estimates its weight on a validation part, on the training part it would be 1: give "
                "data.validation, or model.alpha."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Estimate the weight when the step that uses it begins."""
        super().on_train_batch_start(batch, batch_idx)
        step, mixed = self.turn()
        if self.alpha is None and mixed and step >= 0 and self.estimated[step].isnan():
            self.estimated[step] = best_weight(self.held_out())

    def turn(self) -> tuple[int, bool]:
        """Which step it is, -1: none, and whether its network sees the ground truth."""
        step, place = divmod(self.generation - 1, self.turns)
        return (step, place == self.turns - 1) if self.generation else (-1, True)

    @torch.no_grad()
    def held_out(self) -> Any:
        """Truth, first network and the one for a = 0, on the batches of the validation part."""
        first, alone = self.members[0], self.members[self.generation - 1]
        for batch in validation_part(self):
            truth = one_hot(batch["label"], self.classes).float()
            yield truth, first(batch["image"]).float().softmax(1), alone(batch["image"]).float().softmax(1)

    def weight(self) -> float:
        """a_t of the network whose turn it is."""
        step, mixed = self.turn()
        if step < 0 or not mixed:
            return float(mixed)
        weight = float(self.estimated[step]) if self.alpha is None else self.alpha
        return min(1.0, max(0.0, weight)) if self.clip and self.alpha is None else weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `truth` and, from the first step on, `before`."""
        weight, label = self.weight(), batch["label"]
        said = self.student(batch["image"]).float().softmax(1)  # [B, C]
        known = label >= 0
        truth = one_hot(label.clamp(min=0), said.shape[1]).float()
        error = ((said - truth) ** 2).mean(1)  # [B]
        terms = {"truth": weight * error[known].sum() / known.sum().clamp(min=1), "idle": self.idle()}
        step, mixed = self.turn()
        if step >= 0:
            before = self.members[self.generation - (self.turns if mixed else 1)]
            with torch.no_grad():
                target = before(batch["image"]).float().softmax(1)
            terms["before"] = (1 - weight) * mse_loss(said, target)
        return terms

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score the first network too."""
        super().test_step(batch, batch_idx)
        self.first_score.update(self.members[0](batch["image"]), batch["label"])
        self.log("test/first_accuracy", self.first_score)

    def on_test_epoch_end(self) -> None:
        """Log the weights that were estimated."""
        super().on_test_epoch_end()
        for number, weight in enumerate(self.estimated.tolist(), start=1):
            if weight == weight:
                self.log(f"test/weight_{number}", weight)
