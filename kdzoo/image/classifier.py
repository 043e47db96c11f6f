"""`Classifier`: what methods that train an image classifier share, from student and teacher to metrics and export."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import binary_calibration_error

from kdzoo import registry
from kdzoo.console import count
from kdzoo.errors import UserError
from kdzoo.export.image import export_image_network
from kdzoo.files import write_text
from kdzoo.method import Method
from kdzoo.metrics.figures import confusion_figure, predictions_figure, reliability_figure
from kdzoo.metrics.percent import Percent, PercentError
from kdzoo.optim import Optim
from kdzoo.ranks import of_all_ranks
from kdzoo.students.build import build, check_name
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teachers


class Classifier(Method):
    """Trains a student to classify images; a subclass adds its `losses`.

    Args:
        student: Any timm architecture; kdzoo's small networks are among them.
        teacher: A recipe's name, a `Teacher`, or several; None where the method has no teacher.
        weights: Where the student starts: a file of weights, `pretrained` (timm's), or `recipe:NAME`, what this config
            trains; None from scratch.
        optim: The optimizer and its schedule.
    """

    modality = "image"
    student: ImageNetwork
    teacher: FrozenTeacher

    def __init__(self, student: str, teacher: Teachers | None, weights: str | None, optim: Optim) -> None:
        super().__init__()
        if student:  # a subclass may find its name later
            check_name(student)  # before a teacher is trained in vain, as the next
        if weights and weights.startswith(registry.RECIPE):
            registry.find_config(weights.removeprefix(registry.RECIPE))
        self.architecture = student
        self.teachers = [] if teacher is None else sources.teachers(teacher)
        self.weights = weights
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student, the teacher and the metrics; a subclass adds its own modules after this."""
        classes = spec["classes"]
        self.make_student(spec)
        if self.teachers:
            self.teacher, self._teacher_summary = sources.load(self.teachers, spec)
        labelled = spec.get("labelled", True)
        if (
            not labelled
            and type(self).predictions_of_teacher is Classifier.predictions_of_teacher
            and not self.teachers
        ):
            raise UserError(f"{type(self).__name__} has no teacher, and these data have no labels: give data that do.")
        self.val_scores, self.test_scores = _scores(classes, labelled), _scores(classes, labelled)
        self.confusion = MulticlassConfusionMatrix(classes)
        self.seen: dict[str, list[Tensor]] = {}

    def make_student(self, spec: dict[str, Any]) -> None:
        """Make the student."""
        self.student = build(self.architecture, spec, sources.weights_file(self.weights))

    def prepare(self) -> None:
        """Train the teachers, and the student's start, that are recipes and not in the cache."""
        sources.prepare(self.teachers)
        sources.weights_file(self.weights)

    def summary(self) -> str:
        """Say the student's name and size."""
        size = sum(parameter.numel() for parameter in self.student.parameters())
        ratio = f", {self._teacher_summary['parameters'] / size:.0f}x smaller than the teacher" if self.teachers else ""
        return f"{self.architecture} ({count(size)} parameters{ratio})"

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary if self.teachers else None

    def configure_optimizers(self) -> Any:
        """Optimise everything but the teacher."""
        return self.optim.configure((p for p in self.parameters() if p.requires_grad), self.total_steps)

    # ------------------------------------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log accuracy, nll and ece of the validation part; of data without labels the agreement with the teacher."""
        self._evaluate(self._labelled(batch), "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the same of the test part, and remember the predictions for the pictures."""
        batch = self._labelled(batch)
        logits = self._evaluate(batch, "test")
        confidence, predicted = logits.softmax(1).max(1)
        self.confusion.update(predicted, batch["label"])
        self._remember(confidence=confidence, predicted=predicted, label=batch["label"])
        if not self.seen.get("image"):
            self._remember(image=batch["image"][:24])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `index` int64 [B] and `logits` float32 [B, C]."""
        return {"index": batch["index"], "logits": self.student(batch["image"]).float()}

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Write `predictions.csv`: `index,predicted,confidence`, ascending."""
        index, logits = (torch.cat([batch[key] for batch in predictions]) for key in ("index", "logits"))
        confidence, predicted = logits.softmax(1).max(1)
        names = (self.spec or {}).get("class_names")
        labels = [names[number] if names else number for number in predicted.tolist()]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "predicted", "confidence"])
        rows = zip(index.tolist(), labels, (f"{share:.6f}" for share in confidence.tolist()), strict=True)
        writer.writerows(sorted(rows))
        write_text(folder / "predictions.csv", text.getvalue())
        return folder / "predictions.csv"

    def on_test_start(self) -> None:
        """Forget the last test."""
        self.confusion.reset()
        self.seen = {}

    def on_test_epoch_end(self) -> None:
        """Bring together what the ranks have seen; later only the first draws."""
        self.counts = self.confusion.compute().cpu()
        parts = of_all_ranks({name: torch.cat(tensors) for name, tensors in self.seen.items()})
        # Images first: each rank has them of its first samples only.
        self.seen = {name: [part[name] for part in parts] for name in self.seen if name != "image"}
        self.seen["image"] = [parts[0]["image"]]

    def _evaluate(self, batch: dict[str, Tensor], part: str) -> Tensor:
        logits = self.student(batch["image"]).float()  # [B, C]
        scores: Any = self.val_scores if part == "val" else self.test_scores
        if "agreement" in scores:
            scores["agreement"].update(logits, batch["label"])
        else:
            scores["accuracy"].update(logits, batch["label"])
            scores["ece"].update(logits.softmax(1), batch["label"])
            scores["nll"].update(cross_entropy(logits, batch["label"]), len(logits))
        self.log_dict({f"{part}/{name}": score for name, score in scores.items()}, prog_bar=part == "val")
        return logits

    def predictions_of_teacher(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the class that the teacher sees in each image, int64 [B]."""
        return self.teacher(batch).argmax(1)

    def _labelled(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if (self.spec or {}).get("labelled", True):
            return batch
        return {**batch, "label": self.predictions_of_teacher(batch)}

    def _remember(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self.seen.setdefault(name, []).append(tensor.detach().cpu())

    # ---------------------------------------------------------------------------------------------------- results

    def figures(self) -> dict[str, Figure]:
        """Draw the confusion matrix, the calibration and sample predictions of the last test."""
        if not self.seen or self.spec is None:
            return {}
        seen = {name: torch.cat(tensors) for name, tensors in self.seen.items()}
        names = self.spec.get("class_names") or [str(number) for number in range(self.spec["classes"])]
        n = len(seen["image"])
        sample = (seen["image"], seen["label"][:n], seen["predicted"][:n], seen["confidence"][:n], names)
        correct = seen["predicted"] == seen["label"]
        ece = 100 * float(binary_calibration_error(seen["confidence"], correct.int(), n_bins=15))
        return {
            "Confusion": confusion_figure(self.counts, names),
            "Calibration": reliability_figure(seen["confidence"], correct, ece),
            "Predictions": predictions_figure(*sample),
        }

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student: see `kdzoo.export.image`."""
        return export_image_network(self.student, dict(self.spec or {}), folder, scores)


def _scores(classes: int, labelled: bool) -> nn.ModuleDict:
    if not labelled:
        return nn.ModuleDict({"agreement": Percent(classes, average="micro")})
    return nn.ModuleDict(
        {"accuracy": Percent(classes, average="micro"), "nll": MeanMetric(), "ece": PercentError(classes, n_bins=15)}
    )
