"""Base of the data modules for semantic segmentation: what their batches and specs are."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from kdzoo.datamodules.augment import flip_and_shift
from kdzoo.datamodules.image_data import Batch, ImageData, Samples
from kdzoo.errors import UserError

IGNORE = 255  # the id of pixels that have no class


@dataclass(eq=False)
class MaskedImages(Samples):
    """Images and masks of one size, in memory. `images` is uint8 [N, 3, H, W]; the labels are all 0.

    Attributes:
        masks: uint8 [N, H, W], classes or `IGNORE`.
    """

    masks: Tensor = field(default_factory=lambda: torch.zeros(0))

    def take(self, rows: np.ndarray) -> Self:
        """The samples at `rows`, int64 [n]."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], masks=self.masks[rows])

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        """The batch of (position, view) pairs; images and masks are still uint8."""
        rows, views = torch.tensor(pairs).unbind(1)
        return {"image": self.images[rows], "mask": self.masks[rows], "index": rows + self.first, "view": views}

    def feed(self, digest: Any) -> None:
        """Feed all that makes this part into a hashlib `digest`."""
        digest.update(self.images.numpy())
        digest.update(self.masks.numpy())


class SegmentationData(ImageData):
    """Images with a class for every pixel. A subclass gives its constants to `__init__` and implements `load`.

    Batches: `image` float32 [B, 3, H, W] in [0, 1], `mask` int64 [B, H, W] (classes, or `IGNORE`), `index` and `view`
    int64 [B]; where the images are files also `name`, a list of B texts.

    Args:
        class_names: names of the classes, in the order of their ids; 2 ... 255 of them.
        samples: size of the training part as far as it is known before loading.
        size: side of a training image, in pixels.
        mean, std: statistics per channel of the data in [0, 1].
        batch_size: samples per batch and process.
        num_workers: worker processes per loader.
        validation: how many training samples are held out; 0: no validation part.
        split_seed: seed of that choice.
        flip: random horizontal flips.
        views: number of different views of a sample; None: a new one each epoch.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        samples: int,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        num_workers: int,
        validation: int,
        split_seed: int,
        flip: bool,
        views: int | None,
    ) -> None:
        name = type(self).__name__
        if size < 1:
            raise UserError(f"{name}: the side of a training image must be 1 or more pixels, and is {size}.")
        if not 2 <= len(class_names) <= IGNORE:
            raise UserError(f"{name}: there must be 2 to {IGNORE} classes, and class_names has {len(class_names)}.")
        super().__init__(
            class_names=class_names,
            samples=samples,
            channels=3,
            image_size=(size, size),
            mean=mean,
            std=std,
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

    @property
    def spec(self) -> dict[str, Any]:
        """What networks need to know."""
        height, width = self.image_size
        return {
            "modality": "segmentation",
            "classes": len(self.class_names),
            "class_names": list(self.class_names),
            "channels": self.channels,
            "image_size": [height, width],
            "mean": list(self.mean),
            "std": list(self.std),
            "keys": {
                "image": {"dtype": "float32", "shape": [self.channels, height, width], "low": 0.0, "high": 1.0},
                "mask": {"dtype": "int64", "shape": [height, width], "low": 0, "high": len(self.class_names)},
                "index": {"dtype": "int64", "shape": [], "low": 0, "high": self.samples},
                "view": {"dtype": "int64", "shape": [], "low": 0, "high": self.views or 1},
            },
        }

    def prepare(self, batch: Batch, augment: bool) -> Batch:
        """Flip images and masks alike if asked to, and make them float32 in [0, 1] and int64."""
        both = torch.cat([batch["image"], batch["mask"][:, None]], dim=1)  # uint8 [B, 4, H, W]
        if augment:
            both = flip_and_shift(both, batch["index"], batch["view"], self.flip, 0, self.augment_seed)
        return {**batch, "image": both[:, :3].float() / 255, "mask": both[:, 3].long()}
