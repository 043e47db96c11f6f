"""`NodeClassifier`: what methods that train a classifier of nodes share, from student and teacher to export."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from kdzoo.console import count
from kdzoo.errors import UserError
from kdzoo.export.node_network import export_node_network
from kdzoo.files import write_text
from kdzoo.graph.networks import NodeNetwork, check_name
from kdzoo.graph.trained import load_teacher
from kdzoo.method import Method
from kdzoo.metrics.figures import confusion_figure
from kdzoo.metrics.percent import Percent, PercentF1
from kdzoo.optim import Optim
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.sources import Teachers


class NodeClassifier(Method):
    """Trains a student to classify the nodes of a graph; a subclass adds its `losses`.

    Args:
        student: `mlp`, `gcn`, `sage`, `gat`, `gin` or `sgc`.
        teacher: A recipe's name, a `Teacher`, or several; None where the method has no teacher.
        hidden, layers, dropout, norm: As for `NodeNetwork`.
        optim: The optimizer and its schedule.
    """

    modality = "node_graph"
    student: NodeNetwork
    teacher: FrozenTeacher

    def __init__(
        self,
        student: str,
        teacher: Teachers | None,
        hidden: int,
        layers: int,
        dropout: float,
        norm: str | None,
        optim: Optim,
    ) -> None:
        super().__init__()
        check_name(student)  # before a teacher is trained in vain
        self.architecture = student
        self.teachers = [] if teacher is None else sources.teachers(teacher)
        if any(each.store or each.timm for each in self.teachers):
            raise UserError("A teacher of nodes is a recipe or the folder of a run: leave timm and store out.")
        self.sizes: dict[str, Any] = {"hidden": hidden, "layers": layers, "dropout": dropout, "norm": norm}
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student, the teacher and the metrics."""
        classes = spec["classes"]
        self.student = NodeNetwork(self.architecture, self.inputs(spec), classes, **self.sizes)
        if self.teachers:
            self.teacher, self._teacher_summary = load_teacher(self.teachers, spec)
        self.scores = nn.ModuleDict({part: _scores(classes) for part in ("val", "test")})
        self.unseen_accuracy = Percent(classes, average="micro")
        self.confusion = MulticlassConfusionMatrix(classes, ignore_index=-1)

    def inputs(self, spec: dict[str, Any]) -> int:
        """How many features of a node the student takes."""
        return spec["features"]

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """What the student says of every node, [N, C]."""
        return self.student(batch["x"], batch["edges"])

    def prepare(self) -> None:
        """Train the teachers that are recipes and not in the cache."""
        sources.prepare(self.teachers)

    def summary(self) -> str:
        """Say the student's name and size."""
        return f"{self.architecture} ({count(sum(p.numel() for p in self.student.parameters()))} parameters)"

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary if self.teachers else None

    def configure_optimizers(self) -> Any:
        """Optimise everything but the teacher."""
        return self.optim.configure((p for p in self.parameters() if p.requires_grad), self.total_steps)

    # ------------------------------------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log accuracy and macro F1 of the validation nodes."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log accuracy and macro F1 of the test nodes, and the accuracy of those that the training has not seen."""
        logits = self._evaluate(batch, "test")
        self.confusion.update(logits, batch["label"])
        unseen = batch.get("unseen", torch.zeros_like(batch["label"], dtype=torch.bool)) & (batch["label"] >= 0)
        if unseen.any():
            self.unseen_accuracy.update(logits[unseen], batch["label"][unseen])
            self.log("test/accuracy_unseen", self.unseen_accuracy, batch_size=1)

    def _evaluate(self, batch: dict[str, Tensor], part: str) -> Tensor:
        logits = self.logits(batch).float()
        scores: Any = self.scores[part]
        for name, score in scores.items():
            score.update(logits, batch["label"])
            self.log(f"{part}/{name}", score, prog_bar=part == "val", batch_size=1)
        return logits

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `index` int64 [N] and `logits` float32 [N, C]."""
        return {"index": batch["index"], "logits": self.logits(batch).float()}

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Write `predictions.csv`: `index,predicted,confidence`, ascending."""
        names, text = (self.spec or {})["class_names"], io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "predicted", "confidence"])
        for batch in predictions:
            confidence, predicted = batch["logits"].softmax(1).max(1)
            for index, label, share in zip(batch["index"].tolist(), predicted.tolist(), confidence.tolist()):
                writer.writerow([index, names[label], f"{share:.6f}"])
        write_text(folder / "predictions.csv", text.getvalue())
        return folder / "predictions.csv"

    def on_test_start(self) -> None:
        """Forget the last test."""
        self.confusion.reset()

    # ---------------------------------------------------------------------------------------------------- results

    def figures(self) -> dict[str, Figure]:
        """Draw the confusion matrix of the last test."""
        if not self.confusion.update_called:
            return {}
        return {"Confusion": confusion_figure(self.confusion.compute().cpu(), (self.spec or {})["class_names"])}

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student: `model.safetensors`, `config.json` and a README that says how torch_geometric loads it."""
        return export_node_network(self.student, dict(self.spec or {}), folder, scores)


def _scores(classes: int) -> nn.ModuleDict:
    options: dict[str, Any] = {"num_classes": classes, "ignore_index": -1}
    accuracy, macro_f1 = Percent(average="micro", **options), PercentF1(average="macro", **options)
    return nn.ModuleDict({"accuracy": accuracy, "macro_f1": macro_f1})
