"""LELP: linear projections of the teacher's embedding split every class into sub-classes, which the student learns.

    u_(c,s)(x) = v_(c,s) . (I - W^+ W)(h(x) - m_c)                 m_c: mean of the class; v: its principal directions
    P(c, s | x) = p_t(c | x) softmax_s(u_c(x) / tau)               sums over s to what the teacher says of the class
    loss = T^2 CE(softmax(z / T), P) + ce_weight * CE(Z, y),    z: logits of all C S sub-classes
    Z_c = T logsumexp_s(z_(c,s) / T)                            the student's logit of class c

With few classes the logits say little of how the teacher sees a sample, and its embedding h a lot. W is the teacher's
classifier: what is projected onto its null space is what the logits do not say already. Along the directions the class
has variance 1, and a random rotation mixes them, so that no sub-class is worth more than another. They are fitted
once, on the training part without augmentation, and are in the checkpoint. The student is asked for the sum over its
sub-classes, and is exported so.
Source: Loo et al., arXiv 2409.20449, section 3.1: null space, principal directions of each class, rotation, and a
student trained on the targets alone. No code is public; that the directions are scaled to variance 1 and that tau
divides their scores is our reading, and the values of `subclasses`, `tau` and `temperature` are not the paper's.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdzoo.card import Card
from kdzoo.datamodules.parts import training_part
from kdzoo.errors import UserError
from kdzoo.export.image import export_composed_network
from kdzoo.image.classifier import Classifier
from kdzoo.losses.logits import labelled_cross_entropy, soft_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.build import build
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="Linear Projections of Teacher Embeddings for Few-Class Distillation",
    arxiv="2409.20449",
    year=2024,
    family="image",
    task="image classification",
    teacher="a classifier with a linear head",
    student="any classifier",
    data="images of few classes, labelled or not",
    tags=("features", "sub-classes", "label-free"),
)


def null_space(weight: Tensor) -> Tensor:
    """The projector I - W^+ W, float64 [D, D], onto what a linear layer of weight W [C, D] does not see."""
    weight = weight.detach().double()
    return torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device) - torch.linalg.pinv(weight) @ weight


def class_directions(covariance: Tensor, projector: Tensor, rotation: Tensor, whiten: bool = True) -> Tensor:
    """Principal directions in the null space, scaled to variance 1, then rotated.

    Args:
        covariance: Of a class's embeddings, float64 [D, D].
        projector: Of `null_space`, [D, D].
        rotation: Orthogonal, [S, S].
        whiten: Scale each direction to variance 1; else all by one factor, to variance 1 in the mean.

    Returns:
        float64 [D, S]: scores are (h - mean) @ directions.
    """
    variance, vectors = torch.linalg.eigh(projector @ covariance @ projector)  # ascending
    count = len(rotation)
    # Where a class varies in fewer directions than S, the others stay almost silent.
    kept = variance[-count:].clamp(min=1e-6 * variance[-1].clamp(min=1e-12))
    scale = (kept if whiten else kept.mean()).rsqrt()
    return projector @ vectors[:, -count:] * scale @ rotation.to(vectors)


def subclass_targets(teacher_logits: Tensor, scores: Tensor, tau: float, temperature: float = 1.0) -> Tensor:
    """P(c, s | x) = softmax_c(z_t / T) softmax_s(u / tau).

    Args:
        teacher_logits: [B, C].
        scores: u, [B, C, S].
        tau: > 0, small values give one sub-class to a sample.
        temperature: T > 0.

    Returns:
        Probabilities, [B, C * S], the sub-classes of a class side by side; they sum to 1.
    """
    classes = (teacher_logits.float() / temperature).softmax(1)
    return (classes[:, :, None] * (scores.float() / tau).softmax(2)).flatten(1)


class Merged(nn.Module):
    """A network whose answer for a class is the sum over its sub-classes, as they were taught: at the temperature.

    Args:
        network: Images to logits of classes x sub-classes.
        subclasses: How many each class has.
        temperature: T that the logits were divided by.
    """

    def __init__(self, network: ImageNetwork, subclasses: int, temperature: float) -> None:
        super().__init__()
        self.network, self.subclasses, self.temperature = network, subclasses, temperature

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] to logits [B, classes]."""
        return self.merge(self.network(image))

    def merge(self, logits: Tensor) -> Tensor:
        """Logits of sub-classes [B, classes * S] to logits of classes."""
        return self.temperature * (logits / self.temperature).unflatten(1, (-1, self.subclasses)).logsumexp(2)


class LELP(Classifier):
    """Sub-classes from the teacher's embedding.

    Args:
        student: Any timm architecture; its head gets classes x sub-classes outputs.
        teacher: A recipe's name, or a `Teacher`; one with a linear classifier.
        subclasses: S, sub-classes of a class; 1 is plain distillation.
        tau: Temperature of the sub-classes.
        temperature: T, what the logits of classes and student are divided by.
        ce_weight: Weight of the labels' term; the paper's is 0.
        rotate: Rotate the directions of a class at random.
        whiten: Scale each direction to variance 1; else all of a class by one factor, to variance 1 in the mean.
        weights: Where the student starts: a file, `pretrained`, `recipe:NAME`, or None (from scratch).
        optim: The optimizer and its schedule.
    """

    mean: Tensor
    directions: Tensor
    rotations: Tensor
    fitted: Tensor
    fell: Tensor

    def __init__(
        self,
        student: str,
        teacher: Teachers,
        subclasses: int = 10,
        tau: float = 1.0,
        temperature: float = 1.0,
        ce_weight: float = 0.0,
        rotate: bool = True,
        whiten: bool = True,
        weights: str | None = None,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__(student, teacher, weights, optim)
        if subclasses < 1 or tau <= 0:
            raise UserError(f"lelp needs subclasses >= 1 and tau > 0, not {subclasses} and {tau}.")
        self.subclasses, self.tau, self.temperature = subclasses, tau, temperature
        self.ce_weight, self.rotate, self.whiten = ce_weight, rotate, whiten
        self.least_per_class = subclasses + 1  # so many samples vary in S directions

    def make_student(self, spec: dict[str, Any]) -> None:
        """Make a student with all sub-classes as its outputs."""
        fine_spec = {**spec, "classes": spec["classes"] * self.subclasses}
        fine = build(self.architecture, fine_spec, sources.weights_file(self.weights))
        self.student = Merged(fine, self.subclasses, self.temperature)  # type: ignore[assignment]

    def build(self, spec: dict[str, Any]) -> None:
        """Make room for the directions; they are found when a fit starts."""
        super().build(spec)
        classes, count = spec["classes"], self.subclasses
        linear_classifier(self.teacher.networks, classes)
        (width,) = self.teacher.tap_shapes(spec, ["pre_logits"])["pre_logits"]
        if count > width - classes:
            raise UserError(
                f"lelp has {count} sub-classes in {width - classes} directions that the logits of the teacher do not "
                "show: take fewer sub-classes, or a teacher with a wider embedding."
            )
        drawn = torch.linalg.qr(torch.randn(classes, count, count))[0]
        self.register_buffer("rotations", drawn if self.rotate else torch.eye(count).repeat(classes, 1, 1))
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("directions", torch.zeros(classes, width, count))
        self.register_buffer("fitted", torch.tensor(False))
        known = spec["keys"].get("class")
        # How often a sample of a known finer class fell into each of the teacher's sub-classes, in the test.
        self.register_buffer("fell", torch.zeros(classes * count, known["high"] if known else 0), persistent=False)

    def on_train_start(self) -> None:
        """Find means and directions of the classes, once."""
        if self.fitted:
            return
        number, total, square = self.moments()
        if (number < self.least_per_class).any():
            label = int(number.argmin())
            raise UserError(
                f"lelp finds {self.subclasses} directions in each class, and class {label} has {int(number[label])} "
                "training samples: take fewer sub-classes or more samples."
            )
        mean = total / number[:, None]
        covariance = square / number[:, None, None] - mean[:, :, None] * mean[:, None, :]
        projector = null_space(linear_classifier(self.teacher.networks, len(number)).weight)
        found = [
            class_directions(c, projector, rotation, self.whiten) for c, rotation in zip(covariance, self.rotations)
        ]
        self.mean.copy_(mean)
        self.directions.copy_(torch.stack(found))
        self.fitted.fill_(True)

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Count [C], sum [C, D] and sum of squares [C, D, D] of the embeddings of each class, float64, of all ranks.

        A sample without a label belongs to the class that the teacher would choose.
        """
        classes, width = self.mean.shape
        number, total = self.mean.new_zeros(classes).double(), self.mean.new_zeros(classes, width).double()
        square = self.mean.new_zeros(classes, width, width).double()
        for batch in training_part(self):
            taught = self.teacher.features(batch, ["logits", "pre_logits"])
            label = torch.where(batch["label"] >= 0, batch["label"], taught["logits"].argmax(1))
            for c in label.unique().tolist():
                h = taught["pre_logits"][label == c].double()
                number[c] += len(h)
                total[c] += h.sum(0)
                square[c] += h.T @ h
        if dist.is_available() and dist.is_initialized():
            for part in number, total, square:
                dist.all_reduce(part)
        return number, total, square

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """What the student learns, probabilities [B, C * S]."""
        taught = self.teacher.features(batch, ["logits", "pre_logits"])
        apart = taught["pre_logits"].float()[:, None] - self.mean  # [B, C, D]
        scores = torch.einsum("bcd,cds->bcs", apart, self.directions)
        return subclass_targets(taught["logits"], scores, self.tau, self.temperature)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `subclass` and, with a weight, `ce`."""
        logits = self.student.network(batch["image"])  # [B, C * S]
        loss = soft_cross_entropy(logits / self.temperature, self.targets(batch))
        terms = {"subclass": self.temperature**2 * loss}
        if self.ce_weight:
            merged = self.student.merge(logits)  # type: ignore[operator]
            terms["ce"] = self.ce_weight * labelled_cross_entropy(merged, batch["label"])
        return terms

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Note which finer classes, where the data tell them, fall into which of the teacher's sub-classes."""
        super().test_step(batch, batch_idx)
        if "class" in batch and self.fitted:
            chosen = self.targets(batch).argmax(1)
            self.fell.index_put_((chosen, batch["class"]), self.fell.new_ones(len(chosen)), accumulate=True)

    def on_test_epoch_end(self) -> None:
        """Log how many samples are of their sub-class's most frequent finer class, in percent."""
        super().on_test_epoch_end()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.fell)
        if self.fell.sum() > 0:
            self.log("test/purity", 100 * self.fell.max(1).values.sum() / self.fell.sum())
        self.fell.zero_()

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write ONNX with the sum over sub-classes in it, which is in no architecture of timm's."""
        about = f"{self.architecture} with the sub-classes of lelp summed"
        return export_composed_network(self.student, dict(self.spec or {}), folder, about)


def linear_classifier(networks: tuple[Any, ...], classes: int) -> nn.Linear:
    """The teacher's classifier.

    Raises:
        UserError: There are several teachers, or its head is of another kind or size.
    """
    if len(networks) > 1:
        raise UserError("lelp reads one teacher's embedding: give a single teacher.")
    name, head = networks[0].architecture, networks[0].network.get_classifier()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"lelp reads the embedding before a linear classifier, and '{name}' has none: take another one."
        )
    outputs = head.out_features if networks[0].replaced is None else networks[0].replaced
    if outputs == 1 and classes == 2:
        raise UserError(
            f"The teacher '{name}' has one logit for two classes, and lelp needs one for each: give its classifier a "
            "second row of zeros, whose softmax is the same sigmoid."
        )
    if outputs != classes:
        raise UserError(f"The teacher '{name}' has {outputs} logits, and the data have {classes} classes.")
    return head
