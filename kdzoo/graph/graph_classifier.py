"""`GraphClassifier`: what methods that train a classifier of graphs share, from the student to the export."""

import csv
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from kdzoo.console import count
from kdzoo.export.graph_network import export_graph_network
from kdzoo.files import write_text
from kdzoo.graph.graph_networks import GraphNetwork, Pool
from kdzoo.method import Method
from kdzoo.metrics.figures import confusion_figure
from kdzoo.metrics.percent import Percent, PercentAUC, PercentF1
from kdzoo.optim import Optim

INPUTS = ("x", "edges", "kind", "graph", "index")


class GraphClassifier(Method):
    """Trains a student to classify graphs; a subclass adds its `losses`.

    Args:
        student: `gin` or `gcn`.
        hidden, layers, dropout, norm, pool: As for `GraphNetwork`.
        optim: The optimizer and its schedule.
    """

    modality = "graph"
    student: GraphNetwork

    def __init__(
        self, student: str, hidden: int, layers: int, dropout: float, norm: str | None, pool: Pool, optim: Optim
    ) -> None:
        super().__init__()
        self.architecture = student
        self.sizes: dict[str, Any] = {
            "hidden": hidden,
            "layers": layers,
            "dropout": dropout,
            "norm": norm,
            "pool": pool,
        }
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student and the metrics."""
        self.student = GraphNetwork(self.architecture, spec["features"], spec["kinds"], spec["classes"], **self.sizes)
        self.scores = nn.ModuleDict({part: _scores(spec["classes"]) for part in ("val", "test")})
        self.confusion = MulticlassConfusionMatrix(spec["classes"])

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """What the student says of every graph, [B, C]."""
        return self.student(*(batch[name] for name in INPUTS))

    def summary(self) -> str:
        """Say the student's name and size."""
        return f"{self.architecture} ({count(sum(p.numel() for p in self.student.parameters()))} parameters)"

    def configure_optimizers(self) -> Any:
        """Optimise the student."""
        return self.optim.configure(self.student.parameters(), self.total_steps)

    # ------------------------------------------------------------------------------------------------ evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log accuracy, macro F1 and AUC of the validation part."""
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log accuracy, macro F1 and AUC of the test part."""
        self.confusion.update(self._evaluate(batch, "test"), batch["label"])

    def _evaluate(self, batch: dict[str, Tensor], part: str) -> Tensor:
        logits = self.logits(batch).float()
        scores: Any = self.scores[part]
        for name, score in scores.items():
            score.update(logits, batch["label"])
            self.log(f"{part}/{name}", score, prog_bar=part == "val", batch_size=len(logits))
        return logits

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return `index` int64 [B] and `logits` float32 [B, C]."""
        return {"index": batch["index"], "logits": self.logits(batch).float()}

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Write `predictions.csv`: `index,predicted,confidence`, ascending."""
        names, text = (self.spec or {})["class_names"], io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "predicted", "confidence"])
        rows: list[tuple[int, int, float]] = []
        for batch in predictions:
            confidence, predicted = batch["logits"].softmax(1).max(1)
            rows += zip(batch["index"].tolist(), predicted.tolist(), confidence.tolist())
        writer.writerows([index, names[label], f"{share:.6f}"] for index, label, share in sorted(rows))
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
        """Write the student as a program of torch's own: see `kdzoo.export.graph_network`."""
        return export_graph_network(self.student, dict(self.spec or {}), folder, scores)


def _scores(classes: int) -> nn.ModuleDict:
    accuracy, macro_f1 = Percent(classes, average="micro"), PercentF1(classes, average="macro")
    return nn.ModuleDict({"accuracy": accuracy, "macro_f1": macro_f1, "auc": PercentAUC(classes, average="macro")})
