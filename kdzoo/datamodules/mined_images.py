"""A labelled image set, with those images of an unlabelled pool that a strong classifier takes for its classes.

1. Of the pool, whatever is nearly the same as an image of the validation or test part is left out.
2. The classifier scores the rest; each class keeps the `per_class` images with its highest scores.
3. An image that several classes keep is there once.

Difference from the source: near-duplicates are found by the correlation of thumbnails, where the paper matches SIFT
features, which images of 28 pixels do not have.
Source: Cui et al., arXiv 2103.05959, section 3.2 (k = 4,000 for each of 1,000 classes).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from kdzoo import registry
from kdzoo.console import say
from kdzoo.datamodules.image_data import Batch, ImageData, Samples
from kdzoo.errors import UserError
from kdzoo.files import cache_dir, whole
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teachers

THUMBNAIL = 16  # pixels


@dataclass(frozen=True)
class Source:
    """An image data module and its arguments.

    Args:
        name: its registered name, such as `fashion_mnist`.
        args: its arguments.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Joined(Samples):
    """Samples out of several parts. `images` is int64 [N, 2]: the number of the part, the position in it.

    Attributes:
        parts: where the samples come from.
        grey: whether images in colour are made grey.
    """

    parts: tuple[Samples, ...] = ()
    grey: bool = False

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs, in their order; what a part cannot read is missing there too."""
        places = self.images[[position for position, _ in pairs]].tolist()
        asked: dict[int, list[tuple[int, int]]] = {}
        order: dict[tuple[int, int], int] = {}
        for number, ((part, row), (_, view)) in enumerate(zip(places, pairs)):
            asked.setdefault(part, []).append((row, view))
            order[part, row] = number
        found: list[tuple[int, Tensor]] = []
        corrupt: list[Any] = []
        for part, wanted in asked.items():
            batch = self.parts[part].__getitems__(wanted)
            corrupt += batch.get("corrupt", [])
            if "image" in batch:
                rows = (batch["index"] - self.parts[part].first).tolist()
                images = in_grey(batch["image"]) if self.grey else batch["image"]
                found += [(order[part, row], image) for row, image in zip(rows, images)]
        joined: Batch = {"corrupt": corrupt} if corrupt else {}
        if found:
            found.sort(key=lambda each: each[0])
            rows, views = torch.tensor([pairs[number] for number, _ in found]).unbind(1)
            stacked = torch.stack([image for _, image in found])
            joined |= {"image": stacked, "label": self.labels[rows], "index": rows + self.first, "view": views}
        return joined

    def feed(self, digest: Any) -> None:
        """Feed all that makes this part into a hashlib `digest`."""
        for part in self.parts:
            part.feed(digest)
        digest.update(self.images.numpy())
        digest.update(self.labels.numpy())


class Best:
    """The samples with the highest scores of every class, kept while the scores come in.

    Args:
        classes: C.
        count: how many each class keeps.
    """

    def __init__(self, classes: int, count: int) -> None:
        self.count = count
        self.scores = torch.zeros(0, classes)
        self.numbers = torch.zeros(0, classes, dtype=torch.int64)

    def add(self, numbers: Tensor, scores: Tensor) -> None:
        """Take the scores [B, C] of the samples `numbers`, int64 [B]."""
        scores = torch.cat([self.scores.to(scores), scores])
        numbers = torch.cat([self.numbers.to(numbers), numbers[:, None].expand(-1, scores.shape[1])])
        # A stable sort: of equal scores the earlier sample, whatever the batches.
        best = scores.sort(dim=0, descending=True, stable=True).indices[: self.count]
        self.scores, self.numbers = scores.gather(0, best), numbers.gather(0, best)

    def chosen(self) -> Tensor:
        """The samples that any class keeps, ascending, each once."""
        return self.numbers.unique()


def in_grey(image: Tensor) -> Tensor:
    """Images uint8 [B, 3, H, W] as their luma [B, 1, H, W]; grey ones as they are."""
    if image.shape[1] == 1:
        return image
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True).round().to(torch.uint8)


def thumbnails(image: Tensor) -> Tensor:
    """Images [B, C, H, W] in grey at 16 x 16 pixels, without their mean, of length 1: [B, 256]."""
    small = adaptive_avg_pool2d(image.mean(1, keepdim=True), THUMBNAIL).flatten(1)
    return normalize(small - small.mean(1, keepdim=True), dim=1)


class MinedImages(ImageData):
    """See the module. The pool has no labels: label -1.

    Args:
        data: the labelled set; its unlabelled samples, if it has any, belong to the pool.
        pools: more images for the pool, of the same size; their labels do not count, and a grey set sees them grey.
        scorer: a classifier of the labelled set's classes: a recipe's name, a `Teacher`, or several.
        per_class: how many images of the pool each class keeps; None: the whole pool.
        duplicate: correlation, in (0, 1], from which an image of the pool is one of the validation or test part's;
            None: keep all.
        batch_size: samples per batch and process.
        views: number of different views of a sample; None: a new one each epoch.
        num_workers: worker processes per loader.
    """

    def __init__(
        self,
        data: Source,
        scorer: Teachers,
        pools: Sequence[Source] = (),
        per_class: int | None = 4000,
        duplicate: float | None = 0.995,
        batch_size: int = 128,
        views: int | None = None,
        num_workers: int = 0,
    ) -> None:
        if (per_class is not None and per_class < 1) or (duplicate is not None and not 0 < duplicate <= 1):
            raise UserError(
                f"MinedImages: per_class={per_class} or duplicate={duplicate} is out of range, give 1 or more images "
                "and a correlation in (0, 1], or null."
            )
        self.data, *self.pools = (made(source) for source in (data, *pools))
        super().__init__(
            class_names=self.data.class_names,
            samples=self.data.samples + sum(pool.samples for pool in self.pools),  # at most
            channels=self.data.channels,
            image_size=self.data.image_size,
            mean=self.data.mean,
            std=self.data.std,
            batch_size=batch_size,
            num_workers=num_workers,
            labelled=None,
            unlabelled="keep",
            validation=self.data.validation,
            split_seed=self.data.split_seed,
            flip=self.data.flip,
            shift=self.data.shift,
            views=views,
        )
        self.scorer, self.per_class, self.duplicate = sources.teachers(scorer), per_class, duplicate
        self.kept: dict[str, tuple[int, int]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load the sets, mine the pool, and make the parts."""
        if self.train_set is not None:
            return
        for module in (self.data, *self.pools):
            module.setup()
            shape, wanted = [module.channels, *module.image_size], [self.channels, *self.image_size]
            if module.spec["modality"] != "image":
                raise UserError(f"{type(module).__name__} has '{module.spec['modality']}', and images are mined here.")
            if shape not in (wanted, [3, *self.image_size]) or shape[0] > wanted[0] > 1:
                raise UserError(f"The pool has images of {shape}, the labelled set of {wanted}: give them one size.")
        self.class_names = self.data.class_names
        assert self.data.train_set is not None
        own = replace(self.data.train_set, training=False)  # scored without augmentation
        unlabelled = (own.labels < 0).numpy()
        parts = [own.take(np.flatnonzero(~unlabelled)), own.take(np.flatnonzero(unlabelled))]
        parts += [replace(pool.train_set, training=False) for pool in self.pools]  # type: ignore
        places = [torch.stack([torch.full((len(p),), i), torch.arange(len(p))], 1) for i, p in enumerate(parts)]
        pool = torch.cat(places[1:])
        grey = self.channels == 1
        chosen = pool[self.mine(Joined(pool, torch.full((len(pool),), -1), parts=tuple(parts), grey=grey))]
        names = ["unlabelled", *(type(pool).__name__ for pool in self.pools)]
        for number, (part, name) in enumerate(zip(parts[1:], names), start=1):
            if len(part):
                self.kept[name] = int((chosen[:, 0] == number).sum()), len(part)
        labels = torch.cat([parts[0].labels, torch.full((len(chosen),), -1)])
        self.samples = len(labels)
        parts = [replace(part, training=True) for part in parts]
        self.train_set = Joined(torch.cat([places[0], chosen]), labels, training=True, parts=tuple(parts), grey=grey)
        validation, test = self.data.validation_set, self.data.test_set
        assert test is not None
        self.validation_set = validation and replace(validation, first=self.samples)
        self.test_set = replace(test, first=self.samples + (len(validation) if validation else 0))

    # ------------------------------------------------------------------------------------------------------- mining

    def mine(self, pool: Joined) -> Tensor:
        """The positions in the pool that are kept, ascending; found once for a scorer and a pool, and cached."""
        if not len(pool) or (self.per_class is None and self.duplicate is None):
            return torch.arange(len(pool))
        scorer, summary = sources.load(self.scorer, self.data.spec)
        if sources.untrained():
            return self.search(pool, scorer)
        digest = hashlib.sha256(f"{summary['hash']} {self.per_class} {self.duplicate}".encode())
        for part in (pool, *self._held_out()):
            part.feed(digest)
        path = cache_dir() / "mined" / digest.hexdigest()[:16] / "rows.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name("rows.lock")):
            if not path.is_file():
                say("mining", f"{len(pool):,} unlabelled images are scored")
                with whole(path) as scratch, scratch.open("wb") as file:
                    np.save(file, self.search(pool, scorer).numpy())
            return torch.from_numpy(np.load(path, allow_pickle=False))

    def search(self, pool: Joined, scorer: Any) -> Tensor:
        """Score the pool, and give the positions that are kept, ascending."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        scorer = scorer.to(device)
        held_out = torch.zeros(0, THUMBNAIL**2)
        if self.duplicate is not None:
            held_out = torch.cat([thumbnails(b["image"]) for part in self._held_out() for b in self._batches(part)])
        held_out = held_out.to(device)
        best, single = Best(len(self.class_names), self.per_class or 0), []
        for batch in self._batches(pool):
            image, numbers = batch["image"].to(device), batch["index"].to(device)
            if self.duplicate is not None:
                alike = thumbnails(image) @ held_out.T  # [B, held out]
                new = alike.amax(1) < self.duplicate
                image, numbers = image[new], numbers[new]
            single.append(numbers.cpu())
            if self.per_class is not None and len(image):
                best.add(numbers, scorer({"image": image}).softmax(1))
        return (torch.cat(single) if self.per_class is None else best.chosen()).cpu()

    def _held_out(self) -> list[Samples]:
        return [part for part in (self.data.validation_set, self.data.test_set) if part is not None]

    def _batches(self, part: Samples) -> Iterator[Batch]:
        for batch in self.loader(part, [(position, 0) for position in range(len(part))]):
            yield self.prepare(batch, augment=False)

    # ------------------------------------------------------------------------------------------------ as the data do

    def describe(self) -> str:
        """Say in a few words what there is to train on, and what of the pool was kept."""
        pools = ", ".join(f"{kept:,} of {size:,} {name}" for name, (kept, size) in self.kept.items())
        return super().describe() + f" ({pools})" * bool(pools)

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """As the labelled set does."""
        return self.data.prepare(batch, augment)

    def transform(self) -> dict[str, Any]:
        """The labelled set's."""
        return self.data.transform()

    def teardown(self, stage: str) -> None:
        """Let the sets say what they left out."""
        for module in (self.data, *self.pools):
            module.teardown(stage)


def made(source: Source) -> ImageData:
    """Make the data module of a `Source`.

    Raises:
        UserError: it is of no images with labels.
    """
    source = Source(**source) if isinstance(source, dict) else source
    module = registry.find(registry.DATA, source.name).load()(**source.args)
    if not isinstance(module, ImageData):
        raise UserError(f"'{source.name}' gives no images with labels, which mining needs: take image_folder, say.")
    return module
