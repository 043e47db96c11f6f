"""The real training images of a data module, at hand class by class."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdzoo.errors import UserError


class RealImages:
    """All labelled training images, without augmentation, as uint8 in the machine's memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], 0 ... classes - 1; images without a label (-1) are left out.
        class_names: A name per class.

    Attributes:
        rows: The rows of each class, int64 [N_c], ascending.
    """

    def __init__(self, images: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
        known = labels >= 0
        self.images, self.labels = (images, labels) if known.all() else (images[known], labels[known])
        self.class_names = list(class_names)
        self.rows = [(self.labels == label).nonzero()[:, 0] for label in range(len(self.class_names))]

    @classmethod
    def of(cls, data: Any, spec: dict[str, Any]) -> "RealImages":
        """Read the training part of a data module, batch by batch, as its evaluation would see it."""
        if hasattr(data, "train_set"):
            data.setup()
            samples = replace(data.train_set, training=False)  # folders: the central square, no random crop
            batches = data.loader(samples, [(row, 0) for row in range(len(samples))])
        else:
            batches = data.train_dataloader()
        prepare = getattr(data, "prepare", lambda batch, augment: batch)
        images, labels = [], []
        for batch in batches:
            batch = prepare(batch, augment=False)
            images.append((255 * batch["image"]).round().to(torch.uint8))
            labels.append(batch["label"])
        names = spec.get("class_names") or [str(label) for label in range(spec["classes"])]
        return cls(torch.cat(images), torch.cat(labels), names)

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The images at `rows`, float [n, C, H, W] in [0, 1]."""
        return self.images[rows].to(device).float() / 255

    def draw(self, label: int, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Rows of `count` different images of a class, or of all if it has fewer, in random order."""
        rows = self.rows[label]
        return rows[torch.randperm(len(rows), generator=generator)[:count]]

    def choose(self, ipc: int, seed: int) -> Tensor:
        """Rows of `ipc` random images of each class, [classes * ipc], class by class: a function of the seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([self.draw(label, ipc, generator) for label in range(len(self.rows))])

    def check(self, ipc: int) -> None:
        """Raise a `UserError` unless every class has `ipc` images."""
        for name, rows in zip(self.class_names, self.rows):
            if len(rows) == 0:
                raise UserError(f"The class '{name}' has no labelled training image: leave it out of the data.")
            if len(rows) < ipc:
                raise UserError(
                    f"The class '{name}' has {len(rows)} training images, fewer than ipc={ipc}: give ipc={len(rows)} "
                    "or less."
                )
