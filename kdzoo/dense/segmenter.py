"""`Segmenter`: what methods that train a segmentation network share, from student and teacher to masks and export."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from kdzoo.console import count
from kdzoo.datamodules.segmentation_data import IGNORE
from kdzoo.errors import UserError
from kdzoo.export.segmentation import export_segmenter, load_segmenter
from kdzoo.files import whole
from kdzoo.losses.dense import pixel_cross_entropy
from kdzoo.method import Method
from kdzoo.metrics.segmentation import MeanIoU, class_iou, iou_figure, masks_figure, palette
from kdzoo.optim import Optim
from kdzoo.ranks import of_all_ranks
from kdzoo.spec import check_spec
from kdzoo.students.segmentation import SegmentationNetwork, build_segmenter, check_name, resized
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.recipe import read_config
from kdzoo.teachers.recipe import trained as train_recipe
from kdzoo.teachers.sources import Teacher, Teachers

Start = str | Teacher
# The protocol of the field for VOC: SGD, a polynomial decay of power 0.9.
POLY = Optim(lr=0.02, weight_decay=1e-4, schedule="poly")
SHOWN = 6  # images in the report
MASKS = "masks"  # folder of what `kdzoo predict` segments


class Segmenter(Method):
    """Trains a network to segment images; a subclass adds its `losses`.

    Args:
        student: A segmentation network, see `kdzoo.students.segmentation`.
        teacher: A recipe's name, a `Teacher`, or several; None where the method has no teacher.
        start: A run or a recipe whose network the student starts from; None where it starts anew.
        weights: What the encoder of a new student starts from: `pretrained` (timm's), or a file of weights; None from
            scratch.
        optim: The optimizer and its schedule.
    """

    modality = "segmentation"
    student: SegmentationNetwork
    teacher: FrozenTeacher

    def __init__(
        self, student: str, teacher: Teachers | None, start: Start | None, weights: str | None, optim: Optim
    ) -> None:
        super().__init__()
        if start is not None and weights is not None:
            raise UserError(f"{type(self).__name__}: a student that has a start has weights: leave weights={weights}.")
        check_name(student)  # before a teacher is trained in vain
        self.architecture = student
        self.teachers = [] if teacher is None else sources.teachers(teacher)
        self.start = [] if start is None else sources.teachers(start)
        self.weights = weights
        self.optim = Optim(**optim) if isinstance(optim, dict) else optim

    def label_channels(self, spec: dict[str, Any], taught: bool) -> int:
        """How many input channels code the labels: of the teacher, or of the network that is taught."""
        return 0

    def build(self, spec: dict[str, Any]) -> None:
        """Make the student, the teacher and the metrics."""
        weights = None if sources.untrained() else self.weights
        self.student = build_segmenter(self.architecture, spec, self.label_channels(spec, taught=True), weights)
        for start in self.start:
            network, _ = self.network_of(start, spec, taught=True)
            try:
                self.student.load_state_dict(network.state_dict())
            except RuntimeError as error:
                raise UserError(
                    f"'{start.source}' is a {network.architecture}, and the student that is to start from it a "
                    f"{self.architecture}: name the same."
                ) from error
        if self.teachers:
            self.teacher, self._teacher_summary = sources.freeze(
                self.teachers, [self.network_of(teacher, spec, taught=False) for teacher in self.teachers]
            )
        self.val_miou, self.test_miou = (MeanIoU(spec["classes"], ignore_index=IGNORE) for _ in range(2))
        self.confusion = MulticlassConfusionMatrix(spec["classes"], ignore_index=IGNORE)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def network_of(
        self, teacher: Teacher, spec: dict[str, Any], taught: bool
    ) -> tuple[SegmentationNetwork, dict[str, float]]:
        """Load a teacher, or what the taught network starts from, and its test scores where it has any.

        Raises:
            UserError: The source is missing or damaged, or was made for other data or another coding of the labels.
        """
        if teacher.timm or teacher.store:
            raise UserError("A network of segmentation comes from a recipe or the folder of a run, and has no store.")
        channels = self.label_channels(spec, taught)
        if sources.untrained() and not (teacher.checkpoint and Path(teacher.checkpoint).exists()):
            name = self.architecture
            if teacher.recipe:
                name = read_config(teacher.recipe, teacher.set)["model"]["init_args"]["student"]
            return build_segmenter(name, spec, channels), {}
        folder = train_recipe(teacher.recipe, teacher.set) if teacher.recipe else Path(str(teacher.checkpoint))
        network, config = load_segmenter(folder)
        check_spec(config["spec"], spec, f"The network of '{teacher.source}'")
        if network.label_channels != channels:
            raise UserError(
                f"The network of '{teacher.source}' takes {network.label_channels} channels of labels, and "
                f"{type(self).__name__} gives it {channels}: train it with the same coding, or take another."
            )
        return network, config["scores"]

    def prepare(self) -> None:
        """Train the teachers, and the start, that are recipes and not in the cache."""
        sources.prepare([*self.start, *self.teachers])

    def summary(self) -> str:
        """Say the student's name and size."""
        return f"{self.architecture} ({count(sum(p.numel() for p in self.student.parameters()))} parameters)"

    def teacher_summary(self) -> dict[str, Any] | None:
        """Say who teaches."""
        return self._teacher_summary if self.teachers else None

    def configure_optimizers(self) -> Any:
        """Optimise the student."""
        return self.optim.configure(self.student.parameters(), self.total_steps)

    def cross_entropies(
        self, scores: Tensor, auxiliary: Tensor | None, mask: Tensor, auxiliary_weight: float, suffix: str = ""
    ) -> dict[str, Tensor]:
        """Return `ce`, and `aux_ce` where the network has an auxiliary head."""
        terms = {f"ce{suffix}": pixel_cross_entropy(scores, mask, IGNORE)}
        if auxiliary is not None:
            terms[f"aux_ce{suffix}"] = auxiliary_weight * pixel_cross_entropy(auxiliary, mask, IGNORE)
        return terms

    def teacher_scores(self, inputs: dict[str, Tensor], scores: Tensor) -> Tensor:
        """Return the teacher's scores for `inputs`, interpolated to the size of the student's `scores` [B, C, h, w]."""
        found = self.teacher.features(inputs, ["scores"])["scores"]
        return found if found.shape == scores.shape else resized(found, scores)

    # ------------------------------------------------------------------------------------------------ evaluation

    def segment(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits [B, C, H, W] for a batch that is not trained on."""
        return self.student(batch["image"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean intersection over union of the validation part, percent."""
        self.val_miou.update(self.segment(batch).argmax(1), batch["mask"])
        self.log("val/miou", self.val_miou, prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean intersection over union of the test part, percent; remember some masks."""
        predicted, mask = self.segment(batch).argmax(1), batch["mask"]
        self.test_miou.update(predicted, mask)
        self.confusion.update(predicted, mask)
        self.log("test/miou", self.test_miou)
        for triple in zip(batch["image"], mask, predicted):
            if len(self.seen) < SHOWN:
                image, truth, found = (tensor.detach().cpu() for tensor in triple)
                self.seen.append((image.float(), truth, found))

    def on_test_start(self) -> None:
        """Forget the last test."""
        self.confusion.reset()
        self.seen = []

    def on_test_epoch_end(self) -> None:
        """Bring together what the ranks have seen; later only the first draws."""
        self.iou = class_iou(self.confusion.compute().cpu())
        self.seen = [triple for part in of_all_ranks(self.seen) for triple in part][:SHOWN]

    def figures(self) -> dict[str, Figure]:
        """Draw masks and each class's intersection over union of the last test."""
        if not self.seen or self.spec is None:
            return {}
        names = self.spec["class_names"]
        return {"Masks": masks_figure(self.seen, names), "Classes": iou_figure(self.iou, names)}

    # ------------------------------------------------------------------------------------------------ prediction

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[tuple[str, Tensor]]:
        """Segment images; write each mask below the run's folder, or return name and mask uint8 [H, W]."""
        masks = self.segment(batch).argmax(1).to(torch.uint8).cpu()
        names = batch.get("name") or [f"{index:06d}" for index in batch["index"].tolist()]
        if self.run_dir is None:
            return list(zip(names, masks))
        for name, mask in zip(names, masks):
            picture = Image.fromarray(mask.numpy(), mode="P")
            picture.putpalette(palette(256).tobytes())
            with whole(self.run_dir / MASKS / f"{name}.png") as scratch:
                picture.save(scratch, format="PNG")
        return []

    def write_predictions(self, predictions: list[Any], folder: Path) -> Path:
        """Say where the masks are: each was written when it was ready."""
        return folder / MASKS

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student: see `kdzoo.export.segmentation`."""
        return export_segmenter(self.student, dict(self.spec or {}), folder, scores)
