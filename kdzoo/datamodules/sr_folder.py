"""Pairs for super-resolution out of photographs: DIV2K's layout, any two folders, or the set that is embedded."""

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdzoo.datamodules.augment import uniform
from kdzoo.datamodules.image_data import Batch, ImageData, Samples, as_it_is, stratified
from kdzoo.datamodules.image_folder import image_files
from kdzoo.datamodules.photographs import read_picture
from kdzoo.errors import UserError

EMBEDDED = "assets/photos"
PATCH = 64  # first slot of the random patches
Pair = tuple[np.ndarray, np.ndarray]  # low and high resolution, uint8 [h, w, 3] and [s h, s w, 3]


def read_pair(path: Path, scale: int) -> Pair:
    """Read a photograph, and shrink it by bicubic interpolation with antialiasing, rounded to 8 bits.

    The kernel is that of Matlab's imresize, which made the low resolution of DIV2K. What `scale` does not divide is
    left out at the right and at the bottom.
    """
    pixels = read_picture(path).rgb()
    height, width = (side // scale for side in pixels.shape[:2])
    if min(height, width) < 1:
        raise UserError(f"{path} is smaller than {scale} x {scale} pixels: remove it.")
    high = np.ascontiguousarray(pixels[: height * scale, : width * scale])
    return np.asarray(Image.fromarray(high).resize((width, height), Image.Resampling.BICUBIC)), high


@dataclass(eq=False)
class Photographs(Samples):
    """Photographs: random patches of them for the training, else whole ones.

    Attributes:
        images: int64 [N], which photograph each sample is of.
        paths: the photographs' files.
        scale: how many times larger the high resolution is.
        patch: side of a training patch, in pixels of the high resolution.
        flip: whether to turn and mirror patches.
        seed: seed of the patches.
        keep: whether to decode each photograph once and hold it in memory.
    """

    paths: Sequence[Path] = ()
    scale: int = 2
    patch: int = 192
    flip: bool = True
    seed: int = 0
    keep: bool = False
    kept: dict[int, Pair] = field(default_factory=dict)

    def pair(self, number: int) -> Pair:
        """Low and high resolution of one photograph."""
        if number in self.kept:
            return self.kept[number]
        low, high = read_pair(self.paths[number], self.scale)
        if self.training and min(high.shape[:2]) < self.patch:
            raise UserError(
                f"{self.paths[number]} is {high.shape[1]} x {high.shape[0]} pixels, smaller than a patch of "
                f"{self.patch}: remove it, or give a smaller data.patch."
            )
        if self.keep:
            self.kept[number] = low, high
        return low, high

    def patches(self, number: int, draws: Sequence[float]) -> Pair:
        """A random patch in both resolutions, turned and mirrored alike; four draws in [0, 1)."""
        low, high = self.pair(number)
        side, scale = self.patch // self.scale, self.scale
        top, left = (int(draw * (edge - side + 1)) for draw, edge in zip(draws, low.shape[:2]))
        found = low[top : top + side, left : left + side], high[scale * top :, scale * left :]
        small, large = found[0], found[1][: self.patch, : self.patch]
        if not self.flip:
            return small, large
        turns, mirror = int(4 * draws[2]), draws[3] < 0.5
        small, large = np.rot90(small, turns), np.rot90(large, turns)
        return (small[:, ::-1], large[:, ::-1]) if mirror else (small, large)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs, uint8; `problem` says why one cannot be read.

        It is in the batch and not raised, because an error from a worker process loses its one sentence.
        """
        rows, views = torch.tensor(pairs).unbind(1)
        index = rows + self.first
        draws = uniform(self.seed, index[:, None], views[:, None], PATCH + torch.arange(4)).tolist()
        numbers = self.images[rows].tolist()
        try:
            found = [self.patches(n, d) if self.training else self.pair(n) for n, d in zip(numbers, draws)]
        except UserError as error:
            return {"problem": str(error)}
        lr, hr = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous() for images in zip(*found))
        return {"lr": lr, "hr": hr, "index": index, "view": views}

    def feed(self, digest: Any) -> None:
        """Feed names and sizes in bytes into a hashlib `digest`: contents are too much to read."""
        for path in self.paths:
            digest.update(f"{path.name}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
        digest.update(self.images.numpy())


@dataclass
class ToUpscale(Dataset[Batch]):
    """Somebody's pictures, one at a time.

    Attributes:
        paths: the files.
        names: for each, what to call the result, a relative path without suffix.
        options: what else each batch says (`memory`, `tiling`).
    """

    paths: list[Path]
    names: list[str]
    options: dict[str, Any]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, numbers: list[int]) -> Batch:
        """The picture with this one number: `lr` float32 [1, 3, H, W] in [0, 1], and `picture`, `path`, `name`."""
        (number,) = numbers
        try:
            picture = read_picture(self.paths[number])
        except UserError as error:
            return {"problem": str(error)}
        largest = float(np.iinfo(picture.pixels.dtype).max)
        lr = torch.from_numpy(picture.pixels.astype(np.float32)).div_(largest).permute(2, 0, 1)[None]
        return {
            "lr": lr.expand(1, 3, -1, -1),
            "picture": picture,
            "path": str(self.paths[number]),
            "name": self.names[number],
            **self.options,
        }


class SRFolder(ImageData):
    """Photographs for super-resolution.

    Batches: `lr` float32 [B, 3, h, w] and `hr` float32 [B, 3, s h, s w] in [0, 1], `index` and `view` int64 [B]. The
    test and validation parts give whole photographs, one a batch. An epoch has `patches` patches of every photograph.

    Args:
        source: `embedded`: photographs that kdzoo ships (`NOTICE` says whose), two of them for the test; `path`: those
            in `root`.
        root: folder of the data, for source `path`.
        train, test: names of the parts' folders in `root`; DIV2K's by default.
        scale: how many times larger the high resolution is: 2, 3, 4 ...
        patch: side of a training patch, in pixels of the high resolution; a multiple of `scale`.
        patches: patches of each photograph in an epoch.
        flip: whether to turn and mirror patches (the 8 symmetries of the square).
        in_memory: decode the training photographs once, at the start; else each time that a patch is taken.
        validation: how many photographs of the training part are held out.
        split_seed: seed of that choice.
        batch_size: patches per batch and process.
        views: number of different patches of a sample; None: new ones each epoch.
        image: for `kdzoo predict`: the picture to upscale, or a folder of pictures.
        memory: for `kdzoo predict`: the most memory that the process may take, in GB.
        tiling: for `kdzoo predict`: `exact` (as if the picture went through in one piece) or `published` (quarters).
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        source: Literal["embedded", "path"] = "embedded",
        root: str | None = None,
        train: str = "DIV2K_train_HR",
        test: str = "DIV2K_valid_HR",
        scale: int = 2,
        patch: int = 192,
        patches: int = 20,
        flip: bool = True,
        in_memory: bool = True,
        validation: int = 0,
        split_seed: int = 0,
        batch_size: int = 16,
        views: int | None = None,
        image: str | None = None,
        memory: float = 2.0,
        tiling: Literal["exact", "published"] = "exact",
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            class_names=["photograph"],  # the base counts labels: here all have the same
            samples=1,
            channels=3,
            image_size=(patch, patch),
            mean=[0.0] * 3,
            std=[1.0] * 3,
            batch_size=batch_size,
            num_workers=num_workers,
            labelled=None,
            unlabelled="keep",
            validation=validation,
            split_seed=split_seed,
            flip=flip,
            shift=0,
            views=views,
        )
        if scale < 1 or patch < scale or patch % scale or patches < 1:
            raise UserError(
                f"SRFolder: patch={patch} must be a multiple of scale={scale}; both and patches={patches} 1 or more."
            )
        if source == "path" and root is None:
            raise UserError("SRFolder: source=path needs root, the folder that holds the parts' folders.")
        if memory <= 0:
            raise UserError(f"SRFolder: memory={memory} must be positive, in GB.")
        self.source, self.root, self.parts = source, root, (train, test)
        self.scale, self.patch, self.patches, self.keep = scale, patch, patches, in_memory
        self.image, self.memory, self.tiling = image, memory, tiling

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know: the scale."""
        low = self.patch // self.scale
        return {
            "modality": "super_resolution",
            "channels": 3,
            "scale": self.scale,
            "keys": {
                "lr": {"dtype": "float32", "shape": [3, low, low], "low": 0.0, "high": 1.0},
                "hr": {"dtype": "float32", "shape": [3, self.patch, self.patch], "low": 0.0, "high": 1.0},
                "index": {"dtype": "int64", "shape": [], "low": 0, "high": self.samples},
                "view": {"dtype": "int64", "shape": [], "low": 0, "high": self.views or 1},
            },
        }

    def folders(self) -> tuple[Path, Path]:
        """The folders of the training and of the test part."""
        if self.source == "embedded":
            root = Path(str(importlib.resources.files("kdzoo"))) / EMBEDDED
            return root / "train", root / "test"
        return Path(str(self.root), self.parts[0]), Path(str(self.root), self.parts[1])

    def photographs(self, paths: Sequence[Path], repeat: int = 1) -> Photographs:
        """Samples of these files, each `repeat` times in a row."""
        images = torch.arange(len(paths)).repeat_interleave(repeat)
        return Photographs(
            images=images,
            labels=torch.zeros_like(images),
            paths=paths,
            scale=self.scale,
            patch=self.patch,
            flip=self.flip,
            seed=self.augment_seed,
        )

    def setup(self, stage: str | None = None) -> None:
        """List the photographs, once; decode those of the training if they are to stay in memory."""
        if self.train_set is not None or stage == "predict":
            return
        train, test = (_listed(folder) for folder in self.folders())
        self._check_count("validation", self.validation, len(train) - 1)
        held_out = set(stratified(torch.zeros(len(train)), self.validation, self.split_seed).tolist())
        shown = [path for number, path in enumerate(train) if number not in held_out]
        training = self.photographs(shown, self.patches)
        self.samples = len(training)
        self.train_set = replace(training, training=True, keep=self.keep)
        validation = self.photographs([train[number] for number in sorted(held_out)])
        self.validation_set = replace(validation, first=self.samples) if held_out else None
        self.test_set = replace(self.photographs(test), first=self.samples + len(held_out))

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        self.setup()
        return f"{self.samples // self.patches} photographs, {self.samples:,} patches an epoch"

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training part, shuffled by the run's seed."""
        self.setup()
        if self.keep and isinstance(self.train_set, Photographs):
            for number in range(len(self.train_set.paths)):  # before there are workers, which then share them
                self.train_set.pair(number)
        return super().train_dataloader()

    def _in_order(self, samples: Samples | None) -> DataLoader[Batch]:
        assert samples is not None
        order = self._order(samples, seed=0, shuffle=False, views=1)
        return DataLoader(samples, sampler=order, collate_fn=as_it_is, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The pictures that `image` names."""
        if self.image is None:
            raise UserError("There is nothing to upscale: give --data.image, a picture or a folder of pictures.")
        path = Path(self.image)
        if not path.exists():
            raise UserError(f"There is no picture or folder at '{path}' (data.image).")
        paths = _listed(path) if path.is_dir() else [path]
        top = path if path.is_dir() else path.parent
        stems = [str(file.relative_to(top).with_suffix("")) for file in paths]
        names = [stem if stems.count(stem) == 1 else str(file.relative_to(top)) for stem, file in zip(stems, paths)]
        options = {"memory": self.memory, "tiling": self.tiling}
        pictures = ToUpscale(paths, names, options)
        return DataLoader(pictures, batch_size=1, collate_fn=as_it_is, num_workers=self.num_workers)

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Make the images float32 in [0, 1]; the patches are turned and mirrored already.

        Raises:
            UserError: An image cannot be read.
        """
        if "problem" in batch:
            raise UserError(batch["problem"])
        return {
            key: value.float() / 255 if isinstance(value, Tensor) and value.dtype == torch.uint8 else value
            for key, value in batch.items()
        }

    def transform(self) -> dict[str, Any]:
        """The arguments that make a view's pixels out of a training sample."""
        return {"seed": self.augment_seed, "flip": self.flip, "patch": self.patch, "scale": self.scale}


def _listed(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: put photographs there, or give the name of another.")
    found = image_files(folder)
    if not found:
        raise UserError(f"{folder} holds no images: put photographs there, or give the name of another folder.")
    return found
