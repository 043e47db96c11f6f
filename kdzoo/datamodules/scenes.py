"""Scenes for segmentation, composed of real parts: cut-outs pasted on crops of photographs, with exact masks."""

import importlib.resources
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from kdzoo.datamodules import fashion_mnist
from kdzoo.datamodules.augment import uniform
from kdzoo.datamodules.image_data import Samples, stratified
from kdzoo.datamodules.image_folder import image_files
from kdzoo.datamodules.photographs import read_picture
from kdzoo.datamodules.segmentation_data import MaskedImages, SegmentationData
from kdzoo.errors import UserError

EMBEDDED = "assets/photos"
HELD_OUT = 0.3  # of each embedded training photograph, at its right, is the validation's
STAMPS = Path("/usr/share/tuxpaint/stamps")
PHOTOS = (Path("/usr/share/backgrounds/mate/nature"), Path("/usr/share/backgrounds"))  # the first that is there
CATEGORIES = {  # of the stamps' folders
    "animal": ("animals",),
    "food": ("food",),
    "plant": ("plants",),
    "vehicle": ("vehicles", "military/vehicles"),
    "object": ("household", "hobbies", "sports", "medical", "clothes"),
}
GREY = 24  # a garment's pixels are brighter than this; its ground is black
COLOURS = 0.12  # of the levels that a stamp's pixels take: a drawing has fewer, a photograph more
DRAWS = 9  # random numbers for the ground, and for each object
SLOT = 256  # first slot of the scenes' random numbers
Cutout = np.ndarray  # uint8 [h, w, 4], the last channel how opaque it is


@dataclass
class Stock:
    """What the scenes of one part are made of.

    Attributes:
        photos: uint8 [h, w, 3] each.
        labels: class of each cut-out, 1 or more.
        cut: number of a cut-out -> the cut-out.
        tint: whether cut-outs are grey and get a colour.
    """

    photos: list[np.ndarray]
    labels: np.ndarray
    cut: Callable[[int], Cutout]
    tint: bool


def compose(stock: Stock, draws: np.ndarray, size: int, zoom: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Compose one scene.

    Args:
        stock: what there is.
        draws: [1 + most objects, DRAWS] in [0, 1): the ground's, then each object's.
        size: side of the scene, in pixels.
        zoom: smallest and largest longer side of an object, as a part of the scene's.

    Returns:
        The image, uint8 [size, size, 3], and the mask, uint8 [size, size]: 0 the ground, later objects over earlier.
    """
    which, zoomed, top, left, turned, number, *light = draws[0]
    photo = stock.photos[int(which * len(stock.photos))]
    height, width = photo.shape[:2]
    side = min(round(size * (0.5 + 2.5 * zoomed)), height, width)  # half to three pixels of the photograph in one
    y, x = int(top * (height - side + 1)), int(left * (width - side + 1))
    ground = Image.fromarray(photo[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
    image = np.rot90(np.asarray(ground, np.float32), int(8 * turned) % 4)
    image = image[:, :: -1 if turned < 0.5 else 1] * np.asarray([0.4 + 0.8 * draw for draw in light], np.float32)
    image = image.clip(0, 255)
    mask = np.zeros((size, size), np.uint8)
    for chosen, scale, down, right, flipped, *tint, _ in draws[1 : 2 + int(number * (len(draws) - 1))]:
        what = int(chosen * len(stock.labels))
        cutout = Image.fromarray(stock.cut(what))
        longer = size * (zoom[0] + scale * (zoom[1] - zoom[0])) / max(cutout.size)
        shape = tuple(max(1, round(longer * edge)) for edge in cutout.size)
        pasted = np.asarray(cutout.resize(shape, Image.Resampling.BILINEAR), np.float32)
        if flipped < 0.5:
            pasted = pasted[:, ::-1]
        opaque = pasted[..., 3:] / 255
        colour: np.ndarray = pasted[..., :3]
        if stock.tint:
            colour = (80 + 175 * np.asarray(tint, np.float32)) * (0.25 + 0.75 * colour / 255)
        h, w = colour.shape[:2]  # at least three quarters of it lie in the scene, along each axis
        y, x = (round(draw * (size - edge / 2) - edge / 4) for draw, edge in ((down, h), (right, w)))
        rows, columns = slice(max(0, y), min(size, y + h)), slice(max(0, x), min(size, x + w))
        own = slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x)
        image[rows, columns] += opaque[own] * (colour[own] - image[rows, columns])
        mask[rows, columns][opaque[own][..., 0] > 0.5] = stock.labels[what]
    return image.round().astype(np.uint8), mask


class Scenes(SegmentationData):
    """Composed scenes: each a function of its number alone.

    Training, validation and test share no cut-out, and the test no photograph with the others.

    Args:
        source: `embedded`: garments of Fashion-MNIST (10 classes), cut out by their brightness and coloured, on the
            photographs that kdzoo ships; `system`: photographs of things (5 classes) from Debian's package
            tuxpaint-stamps-default, on those of mate-backgrounds.
        size: side of a scene, in pixels.
        scenes: how many there are for the training.
        validation: how many for the validation; 0: none.
        test: how many for the test.
        objects: at most so many cut-outs in a scene, at least one.
        zoom: smallest and largest longer side of a cut-out, as a part of the scene's.
        split_seed: seed of the split of the cut-outs, and of the photographs of source `system`.
        batch_size: scenes per batch and process.
        flip: random horizontal flips.
        views: number of different views of a scene; None: a new one each epoch.
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        source: Literal["embedded", "system"] = "embedded",
        size: int = 64,
        scenes: int = 3000,
        validation: int = 500,
        test: int = 1000,
        objects: int = 2,
        zoom: tuple[float, float] = (0.5, 0.8),
        split_seed: int = 0,
        batch_size: int = 16,
        flip: bool = True,
        views: int | None = None,
        num_workers: int = 0,
    ) -> None:
        names = fashion_mnist.CLASS_NAMES if source == "embedded" else CATEGORIES
        super().__init__(
            class_names=["background", *names],
            samples=scenes,
            size=size,
            mean=[0.45, 0.45, 0.45],
            std=[0.25, 0.25, 0.25],
            batch_size=batch_size,
            num_workers=num_workers,
            validation=validation,
            split_seed=split_seed,
            flip=flip,
            views=views,
        )
        if min(scenes, test, objects) < 1 or not 0 < zoom[0] <= zoom[1] <= 1:
            raise UserError(
                f"Scenes: scenes={scenes}, test={test} and objects={objects} must be 1 or more, and zoom={zoom} two "
                "rising parts of 1, like (0.5, 0.8)."
            )
        self.source, self.scenes, self.test, self.objects, self.zoom = source, scenes, test, objects, zoom

    def setup(self, stage: str | None = None) -> None:
        """Compose all scenes, once."""
        if self.train_set is not None:
            return
        training, validation, test = self.embedded() if self.source == "embedded" else self.system()
        self.train_set = self.part(training, 0, self.scenes)
        self.train_set.training = True
        if self.validation:
            self.validation_set = self.part(validation, 1, self.validation, first=self.scenes)
        self.test_set = self.part(test, 2, self.test, first=self.scenes + self.validation)

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        return f"{self.scenes:,} scenes"

    def part(self, stock: Stock, number: int, scenes: int, first: int = 0) -> Samples:
        """Compose a part; its scenes do not depend on how many scenes it or another part has."""
        slots = SLOT + torch.arange((1 + self.objects) * DRAWS)
        draws = uniform(self.augment_seed, torch.arange(scenes)[:, None], number, slots)
        made = [
            compose(stock, each.numpy(), self.image_size[0], self.zoom)
            for each in draws.reshape(scenes, 1 + self.objects, DRAWS)
        ]
        images, masks = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*made))
        labels = torch.zeros(scenes, dtype=torch.int64)
        return MaskedImages(images.permute(0, 3, 1, 2).contiguous(), labels, first, masks=masks)

    def embedded(self) -> tuple[Stock, Stock, Stock]:
        """What is in kdzoo; a tenth of the training garments, and a part of each photograph, are the validation's."""
        arrays = fashion_mnist.read_embedded()
        labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
        held_out = stratified(labels, len(labels) // 10, self.split_seed)
        rest = np.setdiff1d(np.arange(len(labels)), held_out)
        folder = Path(str(importlib.resources.files("kdzoo"))) / EMBEDDED
        photos = [read_picture(path).rgb() for path in image_files(folder / "train")]
        edges = [round((1 - HELD_OUT) * photo.shape[1]) for photo in photos]
        shown = [photo[:, :edge] for photo, edge in zip(photos, edges)]
        hidden = [photo[:, edge:] for photo, edge in zip(photos, edges)]
        unseen = [read_picture(path).rgb() for path in image_files(folder / "test")]

        def stock(part: str, photos: list[np.ndarray], rows: np.ndarray | slice = slice(None)) -> Stock:
            grey, kinds = arrays[f"{part}_images"][rows], arrays[f"{part}_labels"][rows]
            return Stock(photos, 1 + kinds, lambda number: garment(grey[number]), tint=True)

        return stock("train", shown, rest), stock("train", hidden, held_out), stock("test", unseen)

    def system(self) -> tuple[Stock, Stock, Stock]:
        """What Debian's packages hold; 70, 10 and 20 % of the stamps and of the photographs."""
        backgrounds = next((folder for folder in PHOTOS if folder.is_dir() and image_files(folder)), None)
        for place, package in (STAMPS, "tuxpaint-stamps-default"), (backgrounds, "mate-backgrounds"):
            if place is None or not place.is_dir():
                raise UserError(
                    f"Scenes: source=system needs Debian's package {package}: `apt-get install {package}`, or give "
                    "source=embedded, which needs no file."
                )
        assert backgrounds is not None
        paths, labels = find_stamps()
        photos = image_files(backgrounds)
        parts = []
        kinds, same = torch.from_numpy(labels), torch.zeros(len(photos))
        for stamps, views in zip(in_three(kinds, self.split_seed), in_three(same, self.split_seed)):
            if not len(stamps) or not len(views):
                raise UserError(f"Scenes: {STAMPS} and {backgrounds} hold too few pictures to be split in three.")
            mine = [paths[row] for row in stamps]
            pictures = [background(photos[row], 6 * self.image_size[0]) for row in views]
            cut = cache(lambda number, mine=mine: stamp(mine[number], self.image_size[0]))
            parts.append(Stock(pictures, labels[stamps], cut, tint=False))
        training, validation, test = parts
        return training, validation, test


def garment(grey: np.ndarray) -> Cutout:
    """Cut a garment, uint8 [28, 28], out of its black ground; the mask has no holes."""
    opaque = 255 * binary_fill_holes(grey > GREY).astype(np.uint8)
    rows, columns = (np.flatnonzero(opaque.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((1, 1, 4), np.uint8)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.dstack([grey[box]] * 3 + [opaque[box]])


def stamp(path: Path, size: int) -> Cutout:
    """A stamp, no larger than a scene, without its transparent border."""
    with Image.open(path) as picture:
        whole = picture.convert("RGBA")
    cutout = whole.crop(whole.getchannel("A").getbbox())
    cutout.thumbnail((size, size))
    return np.asarray(cutout)


def background(path: Path, side: int) -> np.ndarray:
    """A photograph whose shorter side has at most `side` pixels, uint8 [h, w, 3]."""
    with Image.open(path) as picture:
        picture.draft("RGB", (side, side))
        ratio = min(1.0, side / min(picture.size))
        smaller = [max(1, round(ratio * edge)) for edge in picture.size]
        return np.asarray(picture.convert("RGB").resize((smaller[0], smaller[1]), Image.Resampling.BICUBIC))


def find_stamps() -> tuple[list[Path], np.ndarray]:
    """The stamps that are photographs with a transparent ground, and their classes, int64, 1 or more."""
    found: list[Path] = []
    labels: list[int] = []
    for label, folders in enumerate(CATEGORIES.values(), start=1):
        for path in (path for folder in folders for path in image_files(STAMPS / folder)):
            if "cartoon" not in path.parts and path.suffix == ".png" and is_photograph(path):
                found.append(path)
                labels.append(label)
    return found, np.asarray(labels, np.int64)


def is_photograph(path: Path) -> bool:
    """Whether a stamp has a transparent ground and many colours."""
    with Image.open(path) as picture:
        if not picture.has_transparency_data:
            return False
        small = picture.convert("RGBA")
    small.thumbnail((160, 160))
    pixels = np.asarray(small)
    seen = pixels[pixels[..., 3] > 128][:, :3] // 4
    return len(seen) > 0 and len(np.unique(seen, axis=0)) > COLOURS * len(seen)


def in_three(labels: Tensor, seed: int) -> Sequence[np.ndarray]:
    """Split rows, of each class alike, into the training's 70 %, the validation's 10 % and the test's 20 %."""
    test = stratified(labels, round(0.2 * len(labels)), seed)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    held_out = rest[stratified(labels[rest], round(0.1 * len(labels)), seed)]
    return np.setdiff1d(rest, held_out), held_out, test
