"""Base of the image data modules: parts, labels, loaders, augmentation, fingerprints, and a start inside an epoch."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdzoo.datamodules.augment import flip_and_shift
from kdzoo.datamodules.order import EpochOrder
from kdzoo.errors import UserError

Batch = dict[str, Any]


@dataclass(eq=False)
class Samples(Dataset[Batch]):
    """One part of a data set, served a whole batch at a time.

    Attributes:
        images: uint8 [N, C, H, W]; a subclass may hold whatever names its images.
        labels: int64 [N], -1: no label.
        first: number of the first sample. The parts are numbered one after the other, the training part from 0, so
            that nothing kept by `index` can be confused with a sample of another part.
        training: whether this is the part that is augmented.
        classes: int64 [N], what the labels were before classes were grouped; None: they were not.
    """

    images: Any
    labels: Tensor
    first: int = 0
    training: bool = False
    classes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Self:
        """The samples at `rows`, int64 [n]."""
        classes = None if self.classes is None else self.classes[rows]
        return replace(self, images=self.images[rows], labels=self.labels[rows], classes=classes)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs; images are still uint8."""
        rows, views = torch.tensor(pairs).unbind(1)
        batch = {"image": self.images[rows], "label": self.labels[rows], "index": rows + self.first, "view": views}
        return batch if self.classes is None else {**batch, "class": self.classes[rows]}

    def feed(self, digest: Any) -> None:
        """Feed all that makes this part into a hashlib `digest`."""
        digest.update(self.images.numpy())
        digest.update(self.labels.numpy())


def as_it_is(batch: Any) -> Any:
    """Collate function for samples that are a batch already."""
    return batch


def stratified(labels: Tensor, count: int, seed: int) -> np.ndarray:
    """Choose `count` rows so that every class keeps its share, to the nearest sample.

    Args:
        labels: int64 [N].
        count: 0 ... N.
        seed: seed of the choice. Where the shares are whole numbers, a smaller choice is part of a larger one.

    Returns:
        int64 [count], ascending.
    """
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    shares = sizes * count / max(1, len(labels))
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: count - quotas.sum()]] += 1  # the largest remainders
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    chosen = [shuffled[labels.numpy()[shuffled] == label][:quota] for label, quota in zip(classes, quotas)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def with_noise(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Symmetric label noise: give this share of the samples a label drawn evenly from the other classes.

    Args:
        labels: int64 [N].
        share: in [0, 1].
        classes: how many there are.
        seed: seed of the choice and of the labels.

    Returns:
        int64 [N].
    """
    draws = np.random.default_rng([seed, 1])
    chosen = torch.from_numpy(draws.permutation(len(labels))[: round(share * len(labels))])
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + torch.from_numpy(draws.integers(1, classes, len(chosen)))) % classes
    return noisy


class ImageData(LightningDataModule):
    """Images with labels. A subclass gives its constants to `__init__` and implements `load`.

    Batches are dicts: `image` float32 [B, C, H, W] in [0, 1], `label` int64 [B] (-1: none), `index` int64 [B], `view`
    int64 [B]; with `groups` also `class` int64 [B], the class before it was merged. Loaders give uint8 images;
    `prepare` makes them float, on the device, and augments those of the training.

    Args:
        class_names: names of the classes; empty: known once the data are loaded.
        samples: size of the training part as far as it is known before loading.
        channels, image_size: shape [C, H, W] of an image.
        mean, std: statistics per channel of the data in [0, 1].
        batch_size: samples per batch and process.
        num_workers: worker processes per loader.
        labelled: how many training samples keep their label (stratified); None: all.
        unlabelled: what becomes of the others: kept with label -1, or dropped.
        validation: how many training samples are held out (stratified); 0: no validation part.
        split_seed: seed of these choices.
        flip: random horizontal flips.
        shift: random shifts by up to so many pixels.
        views: number of different views of a sample; None: a new one each epoch.
    """

    # A constant, not the run's seed: what is stored of a (sample, view) serves every run.
    augment_seed: ClassVar[int] = 0
    noise: float = 0.0  # share of the training labels that are wrong
    groups: int | None = None  # how many groups the classes are merged into

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        samples: int,
        channels: int,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        num_workers: int,
        labelled: int | None,
        unlabelled: Literal["keep", "drop"],
        validation: int,
        split_seed: int,
        flip: bool,
        shift: int,
        views: int | None,
    ) -> None:
        super().__init__()
        at_least = {
            "batch_size": (batch_size, 1),
            "num_workers": (num_workers, 0),
            "labelled": (labelled, 0),
            "validation": (validation, 0),
            "shift": (shift, 0),
            "views": (views, 1),
        }
        for argument, (value, least) in at_least.items():
            if value is not None and value < least:
                raise UserError(f"{type(self).__name__}: {argument}={value} is too small, use {least} or more.")
        self.class_names, self.samples = list(class_names), samples
        self.channels, self.image_size, self.mean, self.std = channels, image_size, mean, std
        self.batch_size, self.num_workers = batch_size, num_workers
        self.labelled, self.unlabelled, self.validation, self.split_seed = labelled, unlabelled, validation, split_seed
        self.flip, self.shift, self.views = flip, shift, views
        self.train_set: Samples | None = None
        self.validation_set: Samples | None = None
        self.test_set: Samples | None = None
        self._epoch = self._start = 0

    def load(self) -> tuple[Samples, Samples]:
        """Read the training and the test part; may set `class_names`."""
        raise NotImplementedError

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know. Reads the disk only where the arguments do not say it."""
        if not self.class_names:
            self.setup()
        shape = [self.channels, *self.image_size]
        names = self.names()
        grouped = {"class": {"dtype": "int64", "shape": [], "low": 0, "high": len(self.class_names)}}
        return {
            "modality": "image",
            "classes": len(names),
            "class_names": names,
            "channels": self.channels,
            "image_size": list(self.image_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "keys": {
                "image": {"dtype": "float32", "shape": shape, "low": 0.0, "high": 1.0},
                "label": {"dtype": "int64", "shape": [], "low": 0, "high": len(names)},
                "index": {"dtype": "int64", "shape": [], "low": 0, "high": self.samples},
                "view": {"dtype": "int64", "shape": [], "low": 0, "high": self.views or 1},
                **(grouped if self.groups else {}),
            },
        }

    def names(self) -> list[str]:
        """The names of what the labels say: of the classes, or of their groups."""
        if self.groups is None:
            return list(self.class_names)
        return [f"{self.class_names[part[0]]} to {self.class_names[part[-1]]}" for part in self._parts()]

    def group(self, samples: Samples) -> Samples:
        """Merge the classes of a part, in their order, into groups of one size, the first ones larger by one."""
        if self.groups is None:
            return samples
        sizes = torch.tensor([len(part) for part in self._parts()])
        group_of = torch.arange(self.groups).repeat_interleave(sizes)
        return replace(samples, labels=group_of[samples.labels], classes=samples.labels)

    def _parts(self) -> list[np.ndarray]:
        """The classes of each group."""
        count, groups = len(self.class_names), self.groups or 0
        if not 2 <= groups <= count:
            raise UserError(
                f"{type(self).__name__}: {count} classes cannot make groups={groups}, use a number from 2 to {count}."
            )
        return np.array_split(np.arange(count), groups)

    def setup(self, stage: str | None = None) -> None:
        """Load once, whatever the stage, and make the parts."""
        if self.train_set is not None:
            return
        train, test = map(self.group, self.load())
        self._check_count("validation", self.validation, len(train))
        held_out = stratified(train.labels, self.validation, self.split_seed)
        validation, train = train.take(held_out), train.take(np.setdiff1d(np.arange(len(train)), held_out))
        if self.noise:
            train = replace(train, labels=with_noise(train.labels, self.noise, len(self.names()), self.split_seed))
        if self.labelled is not None:
            self._check_count("labelled", self.labelled, len(train))
            keep = stratified(train.labels, self.labelled, self.split_seed)
            if self.unlabelled == "drop":
                train = train.take(keep)
            else:
                labels = torch.full_like(train.labels, -1)
                labels[keep] = train.labels[keep]
                train = replace(train, labels=labels)
        for part, samples in ("training", train), ("test", test):
            if len(samples) == 0:
                raise UserError(f"{type(self).__name__}: the {part} part is empty, check its arguments.")
        self.samples = len(train)
        self.train_set = replace(train, training=True)
        self.validation_set = replace(validation, first=len(train)) if self.validation else None
        self.test_set = replace(test, first=len(train) + len(validation))

    def _check_count(self, argument: str, count: int, available: int) -> None:
        if count > available:
            raise UserError(
                f"{type(self).__name__}: {argument}={count} is more than the {available} training samples, use fewer."
            )

    def in_memory(self, images: np.ndarray, labels: Sequence[int] | np.ndarray | Tensor, place: object) -> Samples:
        """Make a part of arrays that were read from a file.

        Args:
            images: uint8 [N, C, H, W], strides as they come.
            labels: N integers, 0 ... classes - 1.
            place: where they come from, for the message.

        Raises:
            UserError: the arrays are not those of this data set.
        """
        numbers = np.asarray(labels, dtype=np.int64)
        known = (numbers >= 0) & (numbers < len(self.class_names))
        if images.shape != (len(numbers), self.channels, *self.image_size) or not known.all():
            raise UserError(
                f"The files in {place} are not those that {type(self).__name__} expects (images {images.shape}, "
                f"{len(numbers)} labels): put the original ones there."
            )
        return Samples(torch.from_numpy(np.array(images, order="C")), torch.from_numpy(numbers))

    def describe(self) -> str:
        """Say in a few words what there is to train on."""
        self.setup()
        assert self.train_set is not None
        unlabelled = int((self.train_set.labels < 0).sum())
        labels = self.samples - unlabelled
        if not unlabelled:
            return f"{labels:,} images"
        return f"{labels:,} labels + {unlabelled:,} unlabelled images"

    def loader(self, samples: Samples, order: Any, drop_last: bool = False) -> DataLoader[Batch]:
        """Batches of `samples` in `order`, of (position, view) pairs; they still need `prepare`."""
        return DataLoader(
            dataset=samples,
            sampler=order,
            batch_size=self.batch_size,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=as_it_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else every epoch draws from the global generator
        )

    def replay(self, pairs: Sequence[tuple[int, int]]) -> DataLoader[Batch]:
        """Batches of the training samples at (index, view) pairs; `prepare` makes them what the training sees."""
        self.setup()
        assert self.train_set is not None
        return self.loader(self.train_set, pairs)

    def _order(self, samples: Samples, **options: Any) -> EpochOrder:
        if self.trainer is not None:
            options |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return EpochOrder(len(samples), **options)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training part, shuffled by the run's seed (the one of `seed_everything`)."""
        self.setup()
        assert self.train_set is not None
        order = self._order(
            self.train_set,
            seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
            views=self.views,
            epoch=self._epoch,
            start=self._start,
        )
        self._epoch = self._start = 0
        return self.loader(self.train_set, order, drop_last=len(order) > self.batch_size)

    def _in_order(self, samples: Samples | None) -> DataLoader[Batch]:
        assert samples is not None
        return self.loader(samples, self._order(samples, seed=0, shuffle=False, views=1))

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The samples held out of the training part; no loader if there are none."""
        self.setup()
        if self.validation:
            return self._in_order(self.validation_set)
        # Lightning asks whether this was meant: it was
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test part in its own order."""
        self.setup()
        return self._in_order(self.test_set)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test part in its own order."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Make a loader's batch into the network's, on the device."""
        return self.prepare(batch, augment=self.trainer is not None and self.trainer.training)

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Augment the images if asked to, and make them float32 in [0, 1]."""
        image = batch["image"]  # uint8 [B, C, H, W]
        if augment:
            image = flip_and_shift(image, batch["index"], batch["view"], self.flip, self.shift, self.augment_seed)
        return {**batch, "image": image.float() / 255}

    def resume_from(self, checkpoint: dict[str, Any]) -> None:
        """Let the next training loader go on where a Lightning checkpoint stopped.

        Call it before the loader is made. The batch size must be the checkpoint's.
        """
        # Lightning looks for loaders with a state; an order that is a function of (seed, epoch) needs none
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
        if batches["is_last_batch"]:
            self._epoch, self._start = epochs["started"], 0
        else:  # `completed` is one behind in a checkpoint that is written as a batch ends
            self._epoch, self._start = epochs["processed"], batches["current"]["processed"] * self.batch_size

    def fingerprint(self) -> str:
        """Hash of the samples, labels and parts; 64 hexadecimal digits. Batch size and augmentation do not enter."""
        self.setup()
        digest = hashlib.sha256()
        for samples in self.train_set, self.validation_set, self.test_set:
            digest.update(f"part {samples and len(samples)}".encode())
            if samples is not None:
                samples.feed(digest)
        return digest.hexdigest()

    def transform_fingerprint(self) -> str:
        """Hash of what makes a view's pixels out of a training sample; 64 hexadecimal digits."""
        return hashlib.sha256(repr(self.transform()).encode()).hexdigest()

    def transform(self) -> dict[str, Any]:
        """The arguments that make a view's pixels out of a training sample."""
        return {
            "seed": self.augment_seed,
            "flip": self.flip,
            "shift": self.shift,
            "shape": (self.channels, *self.image_size),
        }
