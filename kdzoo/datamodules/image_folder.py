"""Photos in folders, one folder per class: the layout of ImageNet, or one tree that is split here."""

import os
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from kdzoo.datamodules.image_data import Samples, stratified
from kdzoo.datamodules.image_files import IMAGENET_MEAN, IMAGENET_STD, ImageFileData, ImageFiles
from kdzoo.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def open_below(root: str, item: bytes) -> Image.Image:
    """Open the image file whose path below `root` is `item`."""
    return Image.open(os.path.join(root, os.fsdecode(item)))


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted, hidden ones left out."""
    return sorted(
        Path(top, name)
        for top, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    )


class ImageFolder(ImageFileData):
    """Images in `root/train/<class>/` and `root/val/<class>/`; `val` is the test part.

    Without these two folders, `root/<class>/` is split into a training and a test part.

    Args:
        root: folder of the data.
        image_size: side of the images in the batches, in pixels.
        classes: number of classes that is expected; gives the spec before the disk is read, and is checked.
        test_fraction: share of the test part (stratified) where the folders do not give one.
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
        root: str,
        image_size: int = 224,
        classes: int | None = None,
        test_fraction: float = 0.2,
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
        if not 0 < test_fraction < 1:
            raise UserError(f"ImageFolder: test_fraction={test_fraction} must lie between 0 and 1.")
        self.test_fraction = test_fraction

    def load(self) -> tuple[Samples, Samples]:
        """List the files; none is opened."""
        root = Path(self.root)
        if not root.is_dir():
            raise UserError(f"{root} is no folder: root must hold train/ and val/, or one folder per class.")
        top = class_folders(root)
        if "train" in top and "val" in top:
            self.name_classes(class_folders(root / "train"))
            return self._list(root / "train"), self._list(root / "val")
        if "train" in top or "val" in top:
            raise UserError(
                f"{root} holds only one of train/ and val/: add the other, or give a folder of class folders."
            )
        self.name_classes(top)
        samples = self._list(root)
        test = stratified(samples.labels, round(self.test_fraction * len(samples)), self.split_seed)
        return samples.take(np.setdiff1d(np.arange(len(samples)), test)), samples.take(test)

    def _list(self, folder: Path) -> ImageFiles:
        if not self.class_names:
            raise UserError(f"{folder} holds no class folders: put images into one folder per class.")
        items: list[bytes] = []
        labels: list[int] = []
        for name in class_folders(folder):
            if name not in self.class_names:
                raise UserError(f"{folder / name} is a class that the training part lacks: add it there or remove it.")
            files = image_files(folder / name)
            if not files:
                raise UserError(f"{folder / name} holds no images ({', '.join(SUFFIXES)}): add some or remove it.")
            items += [os.fsencode(file.relative_to(self.root)) for file in files]
            labels += [self.class_names.index(name)] * len(files)
        return self.files(
            np.array(items), labels, open=partial(open_below, self.root), name=os.fsdecode, root=self.root
        )
