"""A synthetic set that dataset distillation has exported, as data that any image method of the zoo can train on."""

from pathlib import Path
from typing import Any

from kdzoo import registry
from kdzoo.datamodules.augment import flip_and_shift
from kdzoo.datamodules.image_data import Batch, ImageData, Samples
from kdzoo.errors import UserError
from kdzoo.export.synthetic_set import read_synthetic_set, to_pixels
from kdzoo.spec import check_spec


class SyntheticSet(ImageData):
    """The synthetic images for training, and the test part of the real data that they stand for.

    Images are float32 near [0, 1], not clipped: a synthetic set may lie outside. A set with soft labels gives the most
    likely class of each image as its label.

    Args:
        folder: An export of a method of the family `dataset`, such as `runs/dm/.../export`.
        test: Data module whose test part is used, by its registered name.
        test_args: Its arguments.
        batch_size: samples per batch and process.
        flip: random horizontal flips.
        shift: random shifts by up to so many pixels.
        views: number of different views of a sample; None: a new one each epoch.
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        folder: str,
        test: str,
        test_args: dict[str, Any] | None = None,
        batch_size: int = 256,
        flip: bool = True,
        shift: int = 2,
        views: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.folder = Path(folder)
        self.tensors, self.facts = read_synthetic_set(self.folder)
        spec, statistics = self.facts["spec"], self.facts["preprocessing"]
        super().__init__(
            class_names=spec.get("class_names") or [str(label) for label in range(spec["classes"])],
            samples=len(self.tensors["images"]),
            channels=spec["channels"],
            image_size=tuple(spec["image_size"]),
            mean=statistics["mean"],
            std=statistics["std"],
            batch_size=batch_size,
            num_workers=num_workers,
            labelled=None,
            unlabelled="keep",
            validation=0,
            split_seed=0,
            flip=flip,
            shift=shift,
            views=views,
        )
        module = registry.find(registry.DATA, test).load()
        if not issubclass(module, ImageData):
            raise UserError(f"SyntheticSet: test={test} are no images with labels: name the data of the set.")
        self.real = module(**(test_args or {}))

    def load(self) -> tuple[Samples, Samples]:
        """Turn the images back into pixels, and take the real test part."""
        check_spec(self.spec, self.real.spec, f"The synthetic set in {self.folder}", "its test part")
        self.real.setup()
        assert self.real.test_set is not None
        labels = self.tensors["labels"]
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        return Samples(to_pixels(self.tensors, self.facts), hard), self.real.test_set

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Augment the synthetic images if asked to; real ones are prepared as their own data say."""
        if not batch["image"].is_floating_point():
            return self.real.prepare(batch, augment=False)
        if not augment:
            return batch
        image = flip_and_shift(batch["image"], batch["index"], batch["view"], self.flip, self.shift, self.augment_seed)
        return {**batch, "image": image}
