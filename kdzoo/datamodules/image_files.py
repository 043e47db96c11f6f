"""Images that are decoded sample by sample in the loader's workers, and what their data modules share."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from kdzoo.datamodules.augment import crop_box
from kdzoo.datamodules.image_data import Batch, ImageData, Samples
from kdzoo.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CENTRE = 0.875  # part of the shorter side that evaluation sees


@dataclass(eq=False)
class ImageFiles(Samples):
    """Samples that are opened when they are asked for. `images` is a numpy array [N] of what `open` takes.

    Attributes:
        root: folder that the names are relative to.
        open: item -> PIL image.
        name: item -> what to call the image, a path below `root` where it is a file.
        size: side of the square that comes out, in pixels.
        scale: smallest and largest area of a random crop, as a part of the image.
        seed: seed of the random crops.
    """

    root: str = ""
    open: Callable[[Any], Image.Image] = Image.open
    name: Callable[[Any], str] = str
    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    seed: int = 0

    def path(self, item: Any) -> str:
        """Full name of an image, for messages."""
        return os.path.join(self.root, self.name(item))

    def decode(self, position: int, view: int) -> np.ndarray:
        """One image: a random crop for the training, else the central square; uint8 [size, size, 3]."""
        with self.open(self.images[position]) as image:
            if self.training:
                box = crop_box(self.seed, position + self.first, view, image.height, image.width, self.scale)
            else:
                side = max(1, round(CENTRE * min(image.size)))
                left, top = (image.width - side) // 2, (image.height - side) // 2
                box = left, top, left + side, top + side
            return np.asarray(image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs, without the images that cannot be read: `corrupt` tells their paths.

        They are reported in the batch and not raised, because an error from a worker process loses its one sentence.
        """
        pixels, good, corrupt = [], [], []
        for pair in pairs:
            try:
                pixels.append(self.decode(*pair))
                good.append(pair)
            except Exception as error:  # whatever a decoder stumbles over, it is the file's fault
                corrupt.append((self.path(self.images[pair[0]]), f"{type(error).__name__}: {error}"))
        batch: Batch = {"corrupt": corrupt} if corrupt else {}
        if good:
            rows, views = torch.tensor(good).unbind(1)
            image = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()  # [B, 3, size, size]
            batch |= {"image": image, "label": self.labels[rows], "index": rows + self.first, "view": views}
        return batch

    def feed(self, digest: Any) -> None:
        """Feed names, sizes in bytes and labels into a hashlib `digest`: contents are too much to read."""
        for item in self.images:
            path = self.path(item)
            size = os.stat(path).st_size if os.path.isfile(path) else None
            digest.update(f"{self.name(item)}\0{size}\n".encode(errors="surrogateescape"))
        digest.update(self.labels.numpy())


class ImageFileData(ImageData):
    """Images that are decoded sample by sample: random resized crops for the training, the central square else.

    Args:
        root: folder of the data.
        classes: number of classes that is expected; gives the spec before the disk is read, and is checked.
        image_size: side of the images in the batches, in pixels.
        corrupt: what to do about an image that cannot be decoded: an error, or leave it out with a warning.
        scale: smallest and largest area of a random crop, as a part of the image.
        options: the other arguments of `ImageData`.
    """

    def __init__(
        self,
        *,
        root: str,
        classes: int | None,
        image_size: int,
        corrupt: Literal["error", "skip"],
        scale: tuple[float, float],
        mean: Sequence[float],
        std: Sequence[float],
        **options: Any,
    ) -> None:
        super().__init__(
            class_names=[str(label) for label in range(classes or 0)],
            samples=1,
            channels=3,
            image_size=(image_size, image_size),
            mean=mean,
            std=std,
            **options,
        )
        if image_size < 1:
            raise UserError(f"{type(self).__name__}: image_size={image_size} is too small, use 1 or more.")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"{type(self).__name__}: scale={scale} must be two rising parts of 1, like (0.08, 1.0).")
        self.root, self.classes, self.corrupt, self.scale = root, classes, corrupt, scale
        self._skipped: dict[str, str] = {}

    def files(
        self,
        items: np.ndarray,
        labels: Sequence[int] | torch.Tensor,
        open: Callable[[Any], Image.Image],
        name: Callable[[Any], str],
        root: str,
    ) -> ImageFiles:
        """The part with these items, int or bytes [N], and labels [N]; see `ImageFiles`."""
        return ImageFiles(
            images=items,
            labels=torch.as_tensor(labels, dtype=torch.int64),
            root=root,
            open=open,
            name=name,
            size=self.image_size[0],
            scale=self.scale,
            seed=self.augment_seed,
        )

    def name_classes(self, names: Sequence[str]) -> None:
        """Take the classes that the disk holds, if they are as many as expected."""
        if self.classes not in (None, len(names)):
            raise UserError(
                f"{self.root} holds {len(names)} classes, but classes={self.classes} was given; correct one."
            )
        self.class_names = list(names)

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Deal with the images that could not be read, then as always."""
        corrupt = dict(batch.get("corrupt", []))
        if corrupt and self.corrupt == "error":
            path, reason = next(iter(corrupt.items()))
            raise UserError(f"{path} cannot be decoded ({reason}): repair or remove it, or give corrupt=skip.")
        self._skipped |= corrupt
        if "image" not in batch:
            raise UserError(
                f"No image of a whole batch can be decoded, for example {next(iter(corrupt))}: check {self.root}."
            )
        return super().prepare({key: value for key, value in batch.items() if key != "corrupt"}, augment)

    def teardown(self, stage: str) -> None:
        """Say once what was left out."""
        if self._skipped:
            some = ", ".join(sorted(self._skipped)[:3])
            warnings.warn(f"{len(self._skipped)} images cannot be decoded and were left out: {some}", stacklevel=2)
            self._skipped.clear()

    def transform(self) -> dict[str, Any]:
        """The arguments that make a view's pixels out of a training sample."""
        return {**super().transform(), "scale": self.scale}
