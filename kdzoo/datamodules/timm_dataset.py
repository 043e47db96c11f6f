"""Data sets that timm can open from a local folder."""

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from timm.data import create_dataset

from kdzoo.datamodules.image_data import Samples
from kdzoo.datamodules.image_files import IMAGENET_MEAN, IMAGENET_STD, ImageFileData
from kdzoo.errors import UserError

FOLDERS = ("", "torch/image_folder")
# The others stream, download or give more than one label per image.
SETS = (
    *FOLDERS,
    "torch/cifar10",
    "torch/cifar100",
    "torch/mnist",
    "torch/kmnist",
    "torch/fashion_mnist",
    "torch/imagenet",
    "torch/places365",
)


def open_sample(dataset: Any, position: int) -> Image.Image:
    """Open one sample of a timm or torchvision data set."""
    reader = getattr(dataset, "reader", None)
    # not through timm's own __getitem__: it puts the next image in the place of one that it cannot read
    return dataset[position][0] if reader is None else Image.open(reader[position][0])


def name_sample(dataset: Any, position: int) -> str:
    """Path of one sample below the part's folder, or its number."""
    if hasattr(dataset, "filename"):
        return dataset.filename(position)
    return os.path.relpath(dataset.imgs[position][0], dataset.root) if hasattr(dataset, "imgs") else str(position)


class TimmDataset(ImageFileData):
    """A data set of `timm.data.create_dataset` in a local folder, with random access and without download.

    Args:
        name: timm's name, one of `SETS`: empty for folders of class folders (`root/train`, `root/validation` or their
            synonyms), or `torch/imagenet`, `torch/places365`, `torch/cifar100` and the like.
        root: folder of the data.
        train_split: timm's name of the training part.
        test_split: timm's name of the test part.
        image_size: side of the images in the batches, in pixels.
        classes: number of classes that is expected; gives the spec before the disk is read, and is checked.
        corrupt: what to do about an image that cannot be decoded: an error, or leave it out with a warning.
        labelled: how many training samples keep their label (stratified); None: all.
        unlabelled: what becomes of the others: kept with label -1, or dropped.
        validation: how many training samples are held out (stratified); 0: no validation part.
        split_seed: seed of these choices.
        batch_size: samples per batch and process.
        scale: smallest and largest area of a random crop, as a part of the image.
        flip: random horizontal flips.
        views: number of different views of a sample; None: a new one each epoch.
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        name: str,
        root: str,
        train_split: str = "train",
        test_split: str = "validation",
        image_size: int = 224,
        classes: int | None = None,
        corrupt: Literal["error", "skip"] = "error",
        labelled: int | None = None,
        unlabelled: Literal["keep", "drop"] = "keep",
        validation: int = 0,
        split_seed: int = 0,
        batch_size: int = 128,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        views: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            root=root,
            classes=classes,
            image_size=image_size,
            corrupt=corrupt,
            scale=scale,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            batch_size=batch_size,
            num_workers=num_workers,
            labelled=labelled,
            unlabelled=unlabelled,
            validation=validation,
            split_seed=split_seed,
            flip=flip,
            shift=0,
            views=views,
        )
        if name not in SETS:
            raise UserError(
                f"TimmDataset reads local folders only, not {name!r}: use an empty name or {', '.join(SETS[1:])}."
            )
        for split in train_split, test_split:
            if ".tar" in split:  # timm keeps a tar's index as a pickle
                raise UserError(f"TimmDataset reads folders, not the archive {split!r}: unpack it and give its folder.")
        if not Path(root).is_dir():
            raise UserError(f"{root} is no folder: give timm's data set {name!r} as root.")
        self.dataset, self.train_split, self.test_split = name, train_split, test_split

    def load(self) -> tuple[Samples, Samples]:
        """Open both parts through timm; no image is read."""
        train, test = self._open(self.train_split), self._open(self.test_split)
        names = self._names(train)
        if self._names(test) != names:
            raise UserError(
                f"{self.root}: {self.train_split} and {self.test_split} hold different classes, make them agree."
            )
        self.name_classes(names)
        return self._part(train), self._part(test)

    def _open(self, split: str) -> Any:
        try:
            dataset = create_dataset(self.dataset, root=self.root, split=split, download=False)
        except Exception as error:  # timm and torchvision raise anything from AssertionError to RuntimeError
            raise UserError(f"timm cannot open {self.dataset!r} ({split}) in {self.root}: {error}") from error
        if self.dataset in FOLDERS and Path(getattr(dataset, "reader", dataset).root) == Path(self.root):
            # timm would take the whole tree for each of the parts
            raise UserError(f"{self.root} has no folder for the part {split!r}: add it or give its name.")
        return dataset

    def _names(self, dataset: Any) -> list[str]:
        numbers = getattr(dataset, "reader", dataset).class_to_idx
        names = {number: name for name, number in reversed(numbers.items())}  # ImageNet has synonyms: the first counts
        return [names[number] for number in sorted(names)]

    def _part(self, dataset: Any) -> Samples:
        reader = getattr(dataset, "reader", None)
        labels = dataset.targets if reader is None else [label for _, label in reader.samples]
        return self.files(
            np.arange(len(dataset)),
            labels,
            open=partial(open_sample, dataset),
            name=partial(name_sample, dataset),
            root=str(dataset.root if reader is None else reader.root),
        )
