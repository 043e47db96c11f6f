"""`PosedImages`: photographs of one scene from known cameras, given as rays."""

import hashlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdzoo.console import say
from kdzoo.datamodules.augment import hash32, uniform
from kdzoo.datamodules.cameras import Camera, Prior, rays
from kdzoo.datamodules.image_data import Batch, as_it_is
from kdzoo.datamodules.order import EpochOrder
from kdzoo.errors import UserError

BACKGROUND, PIXEL = 8, 16  # slots of the random numbers
LOOKED_AT = 8  # views whose masks must lie in the box


@dataclass
class Views:
    """Photographs with their cameras.

    Attributes:
        paths: Of the images.
        poses: float32 [N, 4, 4], camera to world.
        cameras: One for all, or one for each.
        images: uint8 [N, H, W, 3 or 4], once they are read.
    """

    paths: list[Path]
    poses: Tensor
    cameras: list[Camera]
    images: Tensor | None = None

    def camera(self, number: int) -> Camera:
        """The camera of a view."""
        return self.cameras[number if len(self.cameras) > 1 else 0]

    def chosen(self, numbers: list[int]) -> "Views":
        """Some of them."""
        cameras = [self.cameras[number] for number in numbers] if len(self.cameras) > 1 else self.cameras
        return Views([self.paths[number] for number in numbers], self.poses[numbers], cameras)

    def rays(self, numbers: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Rays through pixels [N] of the views with these numbers [N]."""
        if len(self.cameras) == 1:
            return rays(self.cameras[0], self.poses[numbers], pixels)
        origin, direction = torch.empty(len(pixels), 3), torch.empty(len(pixels), 3)
        for number in numbers.unique().tolist():
            here = numbers == number
            origin[here], direction[here] = rays(self.cameras[number], self.poses[number], pixels[here])
        return origin, direction


@dataclass
class RayBatches(Dataset[Batch]):
    """Batches of random pixels out of all views; sample i of epoch e is one batch, a function of (seed, i, e).

    Attributes:
        views: Photographs.
        batches: How many an epoch has.
        rays: Rays of a batch, over all ranks.
        rank, world: This process and the number of processes: each has every `world`-th ray of a batch.
        seed: Of the choice.
        random_background: Whether each ray has a background of its own colour; else it is white.
    """

    views: Views
    batches: int
    rays: int
    rank: int
    world: int
    seed: int
    random_background: bool

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, pair: tuple[int, int]) -> Batch:
        """The batch of this (position, epoch)."""
        assert self.views.images is not None
        position, epoch = pair
        step = epoch * self.batches + position
        slot = torch.arange(self.rank, self.rays, self.world)
        height, width = self.views.images.shape[1:3]
        view = hash32(self.seed, step, slot, PIXEL) % len(self.views.poses)
        pixel = hash32(self.seed, step, slot, PIXEL + 1) % (height * width)
        colours = self.views.images.view(-1, height * width, self.views.images.shape[-1])[view, pixel].float() / 255
        origin, direction = self.views.rays(view, pixel)
        draw = step * self.rays + slot  # a number that no other ray of the run has
        background = torch.ones(len(slot), 3)
        if self.random_background:
            background = uniform(self.seed, draw[:, None], 0, BACKGROUND + torch.arange(3))
        index = view * (height * width) + pixel
        return ray_batch(origin, direction, colours, background) | {"index": index, "view": draw}


@dataclass
class WholeViews(Dataset[Batch]):
    """Whole views before a white background, one at a time."""

    views: Views

    def __len__(self) -> int:
        return len(self.views.poses)

    def __getitem__(self, pair: tuple[int, int]) -> Batch:
        """The view of this (position, 0)."""
        assert self.views.images is not None
        number, (height, width) = pair[0], self.views.images.shape[1:3]
        pixel = torch.arange(height * width)
        origin, direction = rays(self.views.camera(number), self.views.poses[number], pixel)
        colours = self.views.images[number].flatten(0, 1).float() / 255
        batch = ray_batch(origin, direction, colours, torch.ones(len(pixel), 3))
        return batch | {"index": number * len(pixel) + pixel, "view": 0 * pixel, "height": height, "name": number}


def ray_batch(origin: Tensor, direction: Tensor, colours: Tensor, background: Tensor) -> Batch:
    """The rays, what they should see, and their background."""
    alpha = colours[:, 3:] if colours.shape[1] == 4 else torch.ones(len(colours), 1)
    rgb = colours[:, :3] * alpha + background * (1 - alpha)
    return {"origin": origin.contiguous(), "direction": direction, "rgb": rgb, "background": background}


@dataclass(frozen=True)
class Layout:
    """What the files of a scene say: its parts, and how far cameras are."""

    train: Views
    validation: Views | None
    test: Views
    prior: Prior = field(repr=False)


class PosedImages(LightningDataModule):
    """Photographs of one scene. A subclass implements `layout`.

    Training batches are random pixels of all views: `origin`, `direction` (of length one), `rgb` and `background`
    float32 [B, 3], `index` int64 [B] (number of the pixel), `view` int64 [B] (a number of its own for every ray that is
    ever drawn). The other parts give one view a batch, all its pixels in rows, with its `height` and number, `name`.

    Args:
        bound: Half the side of the scene's box, [-bound, bound]^3 after `scale`.
        scale: What positions of cameras are multiplied by.
        batch_size: Rays per batch and process.
        batches: Batches of an epoch.
        validation: How many views are looked at while training: of the set's own validation part where it has one, else
            held out of the training part.
        width: Images are shrunk to this width; None: as they are.
        background: `random` for each training ray where images have transparency, or `white`.
        num_workers: Worker processes of the training loader.
    """

    def __init__(
        self,
        bound: float,
        scale: float,
        batch_size: int,
        batches: int,
        validation: int,
        width: int | None,
        background: Literal["random", "white"],
        num_workers: int,
    ) -> None:
        super().__init__()
        if min(bound, scale) <= 0 or min(batch_size, batches) < 1 or validation < 0:
            raise UserError(
                f"{type(self).__name__}: bound={bound} and scale={scale} must be positive, batch_size={batch_size} and "
                f"batches={batches} 1 or more, validation={validation} 0 or more."
            )
        self.bound, self.scale, self.batch_size, self.batches = bound, scale, batch_size, batches
        self.validation, self.width, self.background, self.num_workers = validation, width, background, num_workers
        self.seed_of_rays = 0
        self.parts: Layout | None = None
        self._epoch = self._start = 0

    def layout(self) -> Layout:
        """Read the cameras; poses are multiplied by `scale` and checked by whoever calls."""
        raise NotImplementedError

    @property
    def spec(self) -> dict[str, Any]:
        """What fields need to know: the bound."""
        ray = {"dtype": "float32", "shape": [3], "low": -1.0, "high": 1.0}
        colour = {"dtype": "float32", "shape": [3], "low": 0.0, "high": 1.0}
        number = {"dtype": "int64", "shape": [], "low": 0, "high": 2**31}
        return {
            "modality": "radiance_field",
            "bound": self.bound,
            "keys": {
                "origin": ray,
                "direction": ray,
                "rgb": colour,
                "background": colour,
                "index": number,
                "view": number,
            },
        }

    def cameras(self) -> Layout:
        """The scene's cameras, read once and checked; images are read by `setup`."""
        if self.parts is None:
            found = self.layout()
            for part in (found.train, found.validation, found.test):
                if part is not None:
                    self._check(part)
            if found.validation is None and self.validation:
                count = len(found.train.paths)
                if self.validation >= count:
                    raise UserError(
                        f"{type(self).__name__}: validation={self.validation} leaves no training of {count} views."
                    )
                held_out = [i * count // self.validation for i in range(self.validation)]
                kept = [number for number in range(count) if number not in held_out]
                found = Layout(found.train.chosen(kept), found.train.chosen(held_out), found.test, found.prior)
            elif found.validation is not None:
                given = len(found.validation.paths)
                few = [i * given // min(given, self.validation) for i in range(min(given, self.validation))]
                shown = found.validation.chosen(few) if few else None
                found = Layout(found.train, shown, found.test, found.prior)
            self.parts = found
        return self.parts

    def _check(self, views: Views) -> None:
        rotation = views.poses[:, :3, :3].double()
        error = (rotation @ rotation.transpose(1, 2) - torch.eye(3)).abs().amax((1, 2))
        bad = (error > 1e-3) | (torch.linalg.det(rotation) < 0.5) | ~torch.isfinite(views.poses).flatten(1).all(1)
        if bad.any():
            number = int(bad.int().argmax())
            raise UserError(
                f"The camera of {views.paths[number]} is not rigid (its matrix is no rotation and shift): mend the "
                "file of poses."
            )
        for path, camera in zip(views.paths, views.cameras):  # one for all, or one for each
            if min(camera.width, camera.height) < 1 or not all(0 < each < math.inf for each in (camera.fx, camera.fy)):
                raise UserError(
                    f"The camera of {path} has focal lengths of {camera.fx:g} and {camera.fy:g} pixels for "
                    f"{camera.width} x {camera.height}: all must be positive; mend the file of cameras."
                )
        views.poses = views.poses.clone()
        views.poses[:, :3, 3] *= self.scale

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once."""
        found = self.cameras()
        if found.test.images is not None:
            return
        for part in (found.train, found.validation, found.test):
            if part is not None:
                self._read(part)
        if self.transparent:
            self._check_bound(found.train)
        elif self.background == "random":
            say("data", f"{type(self).__name__}: the images have no transparency: no masks, and a white background")

    def _read(self, views: Views) -> None:
        images: list[np.ndarray] = []
        for path, camera in zip(
            views.paths, views.cameras if len(views.cameras) > 1 else views.cameras * len(views.paths)
        ):
            pixels = read_view(path, camera, self.width)
            if images and pixels.shape != images[0].shape:
                raise UserError(
                    f"{path} has the shape {pixels.shape} (height, width, channels) and {views.paths[0]} "
                    f"{images[0].shape}: make all images of a scene alike."
                )
            images.append(pixels)
        views.images = torch.from_numpy(np.stack(images))
        views.cameras = [camera.scaled(views.images.shape[2]) for camera in views.cameras]

    def _check_bound(self, views: Views) -> None:
        """Complain if an object that masks show is not in the box."""
        assert views.images is not None
        needed = []
        for number in range(0, len(views.paths), max(1, len(views.paths) // LOOKED_AT)):
            pixels = (views.images[number, ..., 3] > 127).flatten().nonzero().squeeze(1)
            if len(pixels):
                origin, direction = rays(views.camera(number), views.poses[number], pixels[:: 1 + len(pixels) // 1000])
                needed.append(nearest_box(origin, direction))
        if needed and (fits := float(torch.cat(needed).quantile(0.995))) > self.bound:
            smaller = 0.95 * self.scale * self.bound / fits
            raise UserError(
                f"The object reaches out of the box: {type(self).__name__} has bound={self.bound} after scale="
                f"{self.scale}; bound={1.05 * fits:.2g} would fit, or scale={smaller:.2g}."
            )

    @property
    def transparent(self) -> bool:
        """Whether the images have masks."""
        train = self.cameras().train
        return train.images is not None and train.images.shape[-1] == 4

    def masked(self) -> Iterator[tuple[Camera, Tensor, Tensor | None]]:
        """Camera, pose and mask of each training view; the mask is None where there is no transparency."""
        self.setup()
        train = self.cameras().train
        assert train.images is not None
        for number, image in enumerate(train.images):
            yield train.camera(number), train.poses[number], image[..., 3] > 0 if image.shape[-1] == 4 else None

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        self.setup()
        train = self.cameras().train
        assert train.images is not None
        height, width = train.images.shape[1:3]
        return f"{len(train.images)} views of {width} x {height} pixels"

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Random rays; every rank walks all batches and takes its share of each."""
        self.setup()
        rank, world = self._world()
        batches = RayBatches(
            self.cameras().train,
            self.batches,
            self.batch_size * world,
            rank,
            world,
            self.seed_of_rays,
            self.transparent and self.background == "random",
        )
        order = EpochOrder(self.batches, seed=0, shuffle=False, epoch=self._epoch, start=self._start)
        self._epoch = self._start = 0
        return self._loader(batches, order, self.num_workers)

    def _loader(self, samples: Dataset[Batch], order: EpochOrder, workers: int = 0) -> DataLoader[Batch]:
        return DataLoader(
            samples,
            batch_size=None,
            sampler=order,
            collate_fn=as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def _whole(self, views: Views) -> DataLoader[Batch]:
        rank, world = self._world()
        order = EpochOrder(len(views.paths), seed=0, shuffle=False, views=1, rank=rank, world_size=world)
        return self._loader(WholeViews(views), order)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The views of the validation part; no loader if there are none."""
        self.setup()
        views = self.cameras().validation
        if views is not None:
            return self._whole(views)
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The views of the test part."""
        self.setup()
        return self._whole(self.cameras().test)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The views of the test part."""
        return self.test_dataloader()

    def resume_from(self, checkpoint: dict[str, Any]) -> None:
        """Let the next training loader go on where a Lightning checkpoint stopped."""
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
        if batches["is_last_batch"]:
            self._epoch, self._start = epochs["started"], 0
        else:
            self._epoch, self._start = epochs["processed"], batches["current"]["processed"]

    def fingerprint(self) -> str:
        """Hash of images and cameras; 64 hexadecimal digits."""
        self.setup()
        digest = hashlib.sha256(repr((self.bound, self.scale)).encode())
        parts = self.cameras()
        for part in (parts.train, parts.validation, parts.test):
            if part is not None and part.images is not None:
                digest.update(part.images.numpy().tobytes())
                digest.update(part.poses.numpy().tobytes())
                digest.update(repr(part.cameras).encode())
        return digest.hexdigest()


def nearest_box(origin: Tensor, direction: Tensor) -> Tensor:
    """Half the side of the smallest box about the origin that each ray [N, 3] touches, to a hundredth."""
    middle = -(origin * direction).sum(1, keepdim=True)  # where the ray is nearest to the origin
    reach = (origin + middle * direction).norm(dim=1, keepdim=True)
    t = middle + reach * torch.linspace(-1.5, 1.5, 151)  # [N, 151]
    return (origin[:, None] + t[..., None] * direction[:, None]).abs().amax(2).amin(1)


def read_view(path: Path, camera: Camera, width: int | None = None) -> np.ndarray:
    """Read an image, uint8 [H, W, 3 or 4], of the camera's size or shrunk to `width`.

    Raises:
        UserError: It is missing, cannot be decoded, or has another shape than the camera's.
    """
    try:
        with Image.open(path) as image:
            shown = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}, which the poses name: put it there, or remove its pose.") from error
    except Exception as error:
        raise UserError(f"{path} cannot be decoded as an image: replace it.") from error
    if abs(shown.width * camera.height - shown.height * camera.width) > max(shown.size):
        raise UserError(
            f"{path} is {shown.width} x {shown.height} pixels, and its camera has {camera.width} x {camera.height}: "
            "give images of the camera's shape."
        )
    if width is not None and width != shown.width:
        size = (width, camera.scaled(width).height)
        if shown.mode == "RGBA":  # Pillow resizes RGBA premultiplied
            return np.asarray(shown.resize(size, Image.Resampling.LANCZOS))
        shown = shown.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(shown)
