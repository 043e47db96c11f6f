"""The small image sets of torchvision from a local folder, held in memory; nothing is ever downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torchvision

from kdzoo.datamodules.fashion_mnist import CLASS_NAMES as CLOTHING
from kdzoo.datamodules.image_data import ImageData, Samples
from kdzoo.errors import UserError, near

DIGITS = tuple("0123456789")
CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm"""


@dataclass(frozen=True)
class Known:
    """What is known of a set before it is read. `folder`: where torchvision looks for it below the root."""

    folder: str
    class_names: tuple[str, ...]
    samples: int
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


# mean and std are the ones that the field uses
KNOWN = {
    "CIFAR10": Known(
        "cifar-10-batches-py",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        50_000,
        3,
        32,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
    ),
    "CIFAR100": Known(
        "cifar-100-python",
        tuple(CIFAR100.split()),
        50_000,
        3,
        32,
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
    ),
    "MNIST": Known("MNIST/raw", DIGITS, 60_000, 1, 28, (0.1307,), (0.3081,)),
    "FashionMNIST": Known("FashionMNIST/raw", CLOTHING, 60_000, 1, 28, (0.2860,), (0.3530,)),
    "KMNIST": Known(
        "KMNIST/raw", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), 60_000, 1, 28, (0.1918,), (0.3483,)
    ),
    "SVHN": Known(".", DIGITS, 73_257, 3, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


class TorchvisionDataset(ImageData):
    """CIFAR10, CIFAR100, MNIST, FashionMNIST, KMNIST or SVHN from a folder laid out for torchvision.

    CIFAR's files are pickles; torchvision opens them only if their MD5 is that of the originals.

    Args:
        name: torchvision's name of the set.
        root: folder that torchvision is given.
        labelled: how many training samples keep their label (stratified); None: all.
        unlabelled: what becomes of the others: kept with label -1, or dropped.
        validation: how many training samples are held out (stratified); 0: no validation part.
        split_seed: seed of these choices.
        batch_size: samples per batch and process.
        flip: random horizontal flips.
        shift: random shifts by up to so many pixels.
        views: number of different views of a sample; None: a new one each epoch.
        num_workers: worker processes per loader.
        groups: merge the classes, in their order, into so many groups, which are then the labels; None: as they are.
    """

    def __init__(
        self,
        name: str,
        root: str = "data",
        labelled: int | None = None,
        unlabelled: Literal["keep", "drop"] = "keep",
        validation: int = 0,
        split_seed: int = 0,
        batch_size: int = 128,
        flip: bool = True,
        shift: int = 4,
        views: int | None = None,
        num_workers: int = 0,
        groups: int | None = None,
    ) -> None:
        if name not in KNOWN:
            raise UserError(
                f"TorchvisionDataset knows no set named {name!r}.{near(name, KNOWN)} All: {', '.join(KNOWN)}."
            )
        known = KNOWN[name]
        super().__init__(
            class_names=known.class_names,
            samples=known.samples,
            channels=known.channels,
            image_size=(known.side, known.side),
            mean=known.mean,
            std=known.std,
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
        self.dataset, self.root, self.groups = name, root, groups

    def load(self) -> tuple[Samples, Samples]:
        """Read both parts through torchvision."""
        if self.dataset == "SVHN":
            return self._read(split="train"), self._read(split="test")
        return self._read(train=True), self._read(train=False)

    def _read(self, **part: Any) -> Samples:
        folder = Path(self.root, KNOWN[self.dataset].folder)
        try:
            dataset = getattr(torchvision.datasets, self.dataset)(root=self.root, download=False, **part)
        except Exception as error:  # torchvision has no class of its own for missing, altered or damaged files
            raise UserError(
                f"{self.dataset} is missing or damaged in {folder}: put the original files there, as torchvision lays "
                "them out; kdzoo does not download."
            ) from error
        pixels = np.asarray(dataset.data)
        if pixels.ndim == 3:
            pixels = pixels[:, None]
        elif pixels.shape[-1] == 3:
            pixels = pixels.transpose(0, 3, 1, 2)
        labels = dataset.labels if self.dataset == "SVHN" else dataset.targets
        return self.in_memory(pixels, labels, folder)
