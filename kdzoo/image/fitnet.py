"""FitNets: hints from the middle of the teacher.

    stage 1 (hint_fraction of the run)   loss = hint_weight * || r(f_s) - f_t ||^2        (mean over elements)
    stage 2                              loss = CE(z_s, y) + lambda * KL(softmax(z_t / T) || softmax(z_s / T))

r is a learned regressor from the student's guided layer to the teacher's hint layer; lambda falls linearly from 4 to 1
over stage 2. `variant: joint` is what later comparisons call FitNet: one stage, CE + hint_weight * hint, weight 100.
Differences from the paper: the two stages share one optimizer and one schedule; r is a 1x1 convolution after the maps
were brought to one size, where the paper uses a kernel that fits the sizes.
Source: Romero et al., arXiv 1412.6550, eq. 2-3 and algorithm 1.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.classifier import Classifier
from kdzoo.losses.features import hint
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.aligner import Aligner
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="FitNets: Hints for Thin Deep Nets",
    arxiv="1412.6550",
    year=2015,
    family="image",
    task="image classification",
    teacher="any classifier with maps of features",
    student="any classifier with maps of features",
    data="images, labelled or not",
    tags=("features",),
)


class FitNet(Classifier):
    """Hint training.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        student_tap: The guided layer: a module path, or an index of timm's `forward_intermediates`.
        teacher_tap: The hint layer, likewise.
        variant: `staged` (the paper) or `joint` (one stage, as in later comparisons).
        hint_fraction: Fraction of the run that stage 1 takes.
        hint_weight: Weight of the hint; None: 1 in stages (the paper), 100 where both are one.
        temperature: T of stage 2.
        kd_weights: lambda at the start and at the end of stage 2.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        student_tap: str = "1",
        teacher_tap: str = "1",
        variant: Literal["staged", "joint"] = "staged",
        hint_fraction: float = 0.3,
        hint_weight: float | None = None,
        temperature: float = 3.0,
        kd_weights: tuple[float, float] = (4.0, 1.0),
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        self.student_tap, self.teacher_tap = student_tap, teacher_tap
        self.variant, self.hint_fraction = variant, hint_fraction
        self.hint_weight = hint_weight if hint_weight is not None else {"staged": 1.0, "joint": 100.0}[variant]
        self.temperature, self.kd_weights = temperature, kd_weights

    def build(self, spec: dict[str, Any]) -> None:
        """Add the regressor, between shapes found by a dry run."""
        super().build(spec)
        student_shape = self.student.tap_shapes(spec, [self.student_tap])[self.student_tap]
        teacher_shape = self.teacher.tap_shapes(spec, [self.teacher_tap])[self.teacher_tap]
        self.regressor = Aligner(student_shape, teacher_shape)

        # Stage 1 trains what leads to the guided layer; whatever lies above it is left as it is.
        image = torch.zeros(2, spec["channels"], *spec["image_size"])
        with torch.random.fork_rng(devices=[]):
            hinted = self.student.eval().forward_with(image, [self.student_tap])[1][self.student_tap].sum()
        parameters = list(self.student.parameters())
        gradients = torch.autograd.grad(hinted, parameters, allow_unused=True)
        self.student.train()
        self.above = [p for p, gradient in zip(parameters, gradients) if gradient is None]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep weight decay and momentum of stage 1 from the layers above the guided one."""
        if self.variant == "staged" and self.progress < self.hint_fraction:
            for parameter in self.above:
                parameter.grad = None

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `hint` in stage 1, `ce` and `kd` in stage 2; `ce` and `hint` where both stages are one."""
        logits, features = self.student.forward_with(batch["image"], [self.student_tap])
        guided = self.regressor(features[self.student_tap])
        if self.variant == "joint":
            return {"ce": labelled_cross_entropy(logits, batch["label"]), "hint": self._hint(guided, batch)}
        if self.progress < self.hint_fraction:
            return {"hint": self._hint(guided, batch), "idle": 0 * logits.sum()}
        done = (self.progress - self.hint_fraction) / (1 - self.hint_fraction)
        first, last = self.kd_weights
        # The paper's lambda multiplies a cross-entropy without the factor T^2.
        kd_weight = (first + (last - first) * done) / self.temperature**2
        return {
            "ce": labelled_cross_entropy(logits, batch["label"]),
            "kd": kd_weight * kd(logits, self.teacher(batch), self.temperature),
            "idle": 0 * guided.sum(),  # every parameter takes part in every step, as distributed training demands
        }

    def _hint(self, guided: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return self.hint_weight * hint(guided, self.teacher.features(batch, [self.teacher_tap])[self.teacher_tap])
