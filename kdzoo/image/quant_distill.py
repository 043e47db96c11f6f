"""Quantised distillation: a student whose weights have few bits learns from a full-precision teacher.

    loss(w_q) = kd_weight * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) + ce_weight * CE(z_s, y),    w_q = Q(w)
    w <- w - lr * dloss/dw_q

The forward and the backward pass see the quantised weights, the step is taken on the full-precision ones, and at the
end Q(w) is what is kept. All parameters are quantised, biases and batch normalisation's affine terms too; what is
evaluated and exported is always quantised. `when: after` is the paper's post-mortem quantisation, the baseline: the
student trains in full precision and is rounded at the end.
The KL is the mean over the batch; the authors' code divides it by the number of classes too, and puts a ReLU on the
student's logits: neither is the paper's. Stochastic rounding is for training; what is evaluated is rounded to nearest.
Source: Polino, Pascanu and Alistarh, arXiv 1802.05668, algorithm 1, and the authors' code (weights 0.7 and 0.3, T = 2).
"""

from typing import Any, Literal

from torch import Tensor

from kdzoo.card import Card
from kdzoo.image.quantised import Quantised
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.quantised import Rounding, UniformLevels, check_bits, quantise
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Model compression via distillation and quantization",
    arxiv="1802.05668",
    year=2018,
    family="image",
    task="image classification",
    teacher="any classifier",
    student="any classifier, with weights of few bits",
    data="images, labelled or not",
    code="https://github.com/antspy/quantized_distillation",
    tags=("logits", "quantisation"),
)


class QuantDistill(Quantised):
    """Quantised distillation.

    Args:
        student: Any timm architecture.
        teacher: A recipe's name, a `Teacher`, or several.
        bits: Bits of a weight, 1 to 8.
        bucket: How many weights share a range.
        rounding: To the nearest level, or in training at random.
        first_and_last: Whether the first layer and the classifier are quantised as well.
        when: Quantise while training, or only after it (post-mortem, the baseline).
        temperature: T, what the logits are divided by.
        kd_weight: Weight of the teacher's term.
        ce_weight: Weight of the labels' term.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        bits: int = 4,
        bucket: int = 256,
        rounding: Rounding = "nearest",
        first_and_last: bool = True,
        when: Literal["training", "after"] = "training",
        temperature: float = 2.0,
        kd_weight: float = 0.7,
        ce_weight: float = 0.3,
        weights: str | None = None,
        optim: Optim = Optim(lr=1e-3, weight_decay=2.2e-4),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        check_bits(bits, bucket)
        self.bits, self.bucket, self.rounding = bits, bucket, rounding
        self.first_and_last, self.when = first_and_last, when
        self.temperature, self.kd_weight, self.ce_weight = temperature, kd_weight, ce_weight

    def make_student(self, spec: dict[str, Any]) -> None:
        """Make the student, and let it be seen through its levels."""
        super().make_student(spec)
        self.quantised = quantise(
            self.student.network,
            lambda _: UniformLevels(self.bits, self.bucket, self.rounding, self.when == "training"),
            self.first_and_last,
        )

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce` and `kd`."""
        student_logits = self.student(batch["image"])  # [B, C]
        teacher_logits = self.teacher(batch)  # [B, C]
        return {
            "ce": self.ce_weight * labelled_cross_entropy(student_logits, batch["label"]),
            "kd": self.kd_weight * kd(student_logits, teacher_logits, self.temperature),
        }
