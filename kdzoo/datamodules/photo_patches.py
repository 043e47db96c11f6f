"""Patches of photographs: natural images for networks that were trained on photographs, out of any folder of them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from kdzoo.datamodules.image_data import ImageData, Samples
from kdzoo.datamodules.image_files import IMAGENET_MEAN, IMAGENET_STD
from kdzoo.datamodules.image_folder import image_files
from kdzoo.datamodules.photographs import read_picture
from kdzoo.datamodules.sr_folder import EMBEDDED
from kdzoo.errors import UserError

TRAIN, TEST = (
    (0.0, 0.6),
    (0.7, 1.0),
)  # parts of a photograph's width; the gap keeps them from sharing what is at a border


class PhotoPatches(ImageData):
    """Square patches at random places of photographs: the left 60 % for the training, the right 30 % for the test.

    The class of a patch is the photograph that it is from. With `classes` there are no labels: that is for a teacher of
    so many classes, whose student is then judged by its agreement with it.

    Args:
        root: folder of photographs, at any depth; None: nine that come with kdzoo (public domain or CC0).
        image_size: side of the images, in pixels.
        patch: smallest and largest side of a patch in its photograph, in pixels.
        patches: training patches of each photograph.
        test_patches: test patches of each photograph.
        classes: number of the teacher's classes; None: as many as photographs.
        labelled: how many training samples keep their label (stratified); None: all.
        unlabelled: what becomes of the others: kept with label -1, or dropped.
        validation: how many training samples are held out (stratified); 0: no validation part.
        split_seed: seed of these choices, and of the patches.
        batch_size: samples per batch and process.
        flip: random horizontal flips.
        shift: random shifts by up to so many pixels.
        views: number of different views of a sample; None: a new one each epoch.
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 64,
        patch: tuple[int, int] = (64, 160),
        patches: int = 1000,
        test_patches: int = 200,
        classes: int | None = None,
        labelled: int | None = None,
        unlabelled: Literal["keep", "drop"] = "keep",
        validation: int = 0,
        split_seed: int = 0,
        batch_size: int = 128,
        flip: bool = True,
        shift: int = 4,
        views: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.folder = Path(root) if root else Path(__file__).parents[1] / EMBEDDED
        self.photographs = image_files(self.folder)
        if len(self.photographs) < 2:
            raise UserError(f"PhotoPatches: {self.folder} holds {len(self.photographs)} photographs: give 2 or more.")
        if min(patches, test_patches, image_size) < 1 or not 0 < patch[0] <= patch[1]:
            raise UserError(
                "PhotoPatches: image_size, patches and test_patches must be 1 or more, patch two rising sides."
            )
        super().__init__(
            class_names=[str(n) for n in range(classes)] if classes else [path.stem for path in self.photographs],
            samples=patches * len(self.photographs) - validation,
            channels=3,
            image_size=(image_size, image_size),
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            batch_size=batch_size,
            num_workers=num_workers,
            labelled=labelled,
            unlabelled=unlabelled,
            validation=validation,
            split_seed=split_seed,
            flip=flip,
            shift=shift,
            views=views,
        )
        self.patch, self.patches, self.test_patches, self.classes = patch, patches, test_patches, classes

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know; `labelled` is False where nobody knows the classes."""
        return super().spec | ({"labelled": False} if self.classes else {})

    def load(self) -> tuple[Samples, Samples]:
        """Cut all patches."""
        return self._cut(TRAIN, self.patches), self._cut(TEST, self.test_patches)

    def _cut(self, part: tuple[float, float], count: int) -> Samples:
        cut = []
        for number, path in enumerate(self.photographs):
            draws = np.random.default_rng([self.split_seed, number, round(100 * part[0])])
            pixels = read_picture(path).rgb()
            strip = Image.fromarray(pixels[:, round(part[0] * pixels.shape[1]) : round(part[1] * pixels.shape[1])])
            largest = min(self.patch[1], *strip.size)
            if largest < self.patch[0]:
                raise UserError(
                    f"{path} is too small for patches of {self.patch[0]} pixels, of which its part is "
                    f"{strip.width} x {strip.height}: lower patch, or remove it."
                )
            for _ in range(count):
                side = int(draws.integers(self.patch[0], largest + 1))
                left, top = (int(draws.integers(0, length - side + 1)) for length in strip.size)
                box = left, top, left + side, top + side
                cut.append(np.asarray(strip.resize(self.image_size, Image.Resampling.BICUBIC, box=box)))
        images = torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).contiguous()  # uint8 [N, 3, H, W]
        labels = torch.arange(len(self.photographs)).repeat_interleave(count)
        return Samples(images, torch.full_like(labels, -1) if self.classes else labels)
