"""`Quantised`: what methods share whose student has weights of few bits."""

from pathlib import Path

from kdzoo.console import count
from kdzoo.export.quantised import export_quantised_network, plain_network, sizes
from kdzoo.image.classifier import Classifier
from kdzoo.students.quantised import LearnedPoints, UniformLevels, encode


class Quantised(Classifier):
    """Tells the student's size, and exports its packed weights; a subclass parametrises the student and trains it.

    Attributes:
        quantised: The parametrisations of the student's parameters, by their names.
        bucket: How many weights share a range.
    """

    quantised: dict[str, UniformLevels | LearnedPoints]
    bucket: int

    def summary(self) -> str:
        """Say the student's name, its number of weights and its size."""
        weights = sum(parameter.numel() for parameter in plain_network(self.student).parameters())
        bytes = self.bytes()
        size = f"{bytes['packed'] / 1000:.1f} kB instead of {bytes['float32'] / 1000:.1f}"
        return f"{self.architecture} ({count(weights)} parameters, {size})"

    def bytes(self) -> dict[str, int]:
        """The student's size: `float32`, `packed` and `huffman`."""
        return sizes(encode(self.student.network, self.quantised), plain_network(self.student).network)

    def on_test_epoch_end(self) -> None:
        """Log the sizes in kB beside the scores."""
        super().on_test_epoch_end()
        self.log_dict({f"test/{name}_kb": size / 1000 for name, size in self.bytes().items()})

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student: see `kdzoo.export.quantised`."""
        encoded = encode(self.student.network, self.quantised)
        return export_quantised_network(self.student, encoded, self.bucket, dict(self.spec or {}), folder, scores)
