"""Fashion-MNIST: embedded in kdzoo (10,000 training images), from Debian's package, or from idx files."""

import gzip
import importlib.resources
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from kdzoo.datamodules.image_data import ImageData, Samples
from kdzoo.errors import UserError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED = "assets/fashion_mnist/images.npz"
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read a file of bytes in the idx format, plain or gzip.

    Args:
        path: the file; the name ends in .gz if it is compressed.
        dimensions: 3 for images, 1 for labels.

    Returns:
        uint8 array with so many dimensions.

    Raises:
        UserError: the file is no such array, is cut short or altered.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()  # to the end, where gzip's checksum is
        header = np.frombuffer(content, ">u4", count=1 + dimensions)
        if header[0] != 0x0800 + dimensions:  # 8: unsigned bytes
            raise ValueError(f"no idx header for {dimensions} dimensions of bytes")
        return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape([int(size) for size in header[1:]])
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is no intact idx file ({error}), replace it with the original.") from error


def read_embedded() -> dict[str, np.ndarray]:
    """Read the archive that `kdzoo/assets/build_fashion_mnist.py` writes.

    It is an npz of uint8 arrays whose members are compressed with LZMA instead of deflate; `numpy.load` reads it.
    Images are stored columns first, which compresses best (7.3 MB; rows first 7.6 MB, with deflate 8.8 MB).
    """
    with (
        importlib.resources.files("kdzoo").joinpath(EMBEDDED).open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        return {name: arrays[name].swapaxes(1, 2) if "images" in name else arrays[name] for name in arrays.files}


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Read the four idx files of a folder, each with or without .gz."""
    arrays = {}
    for part, prefix in ("train", "train"), ("test", "t10k"):
        for kind, suffix, dimensions in ("images", "images-idx3-ubyte", 3), ("labels", "labels-idx1-ubyte", 1):
            candidates = [folder / f"{prefix}-{suffix}", folder / f"{prefix}-{suffix}.gz"]
            path = next((path for path in candidates if path.is_file()), None)
            if path is None:
                raise UserError(
                    f"{candidates[1]} is missing: `apt-get install dataset-fashion-mnist` puts it into {SYSTEM}, "
                    "and source=embedded needs no file."
                )
            arrays[f"{part}_{kind}"] = read_idx(path, dimensions)
    return arrays


class FashionMNIST(ImageData):
    """Fashion-MNIST (Zalando SE, MIT): 28x28 grey images of ten kinds of clothing, 10,000 of them for testing.

    Args:
        source: `embedded`: 1,000 training images per class and the whole test part; `system`: all 60,000 + 10,000 from
            Debian's package dataset-fashion-mnist; `path`: idx files in `root`.
        root: folder for source `path`.
        labelled: how many training samples keep their label (stratified); None: all.
        unlabelled: what becomes of the others: kept with label -1, or dropped.
        validation: how many training samples are held out (stratified); 0: no validation part.
        split_seed: seed of these choices.
        batch_size: samples per batch and process.
        flip: random horizontal flips.
        shift: random shifts by up to so many pixels.
        views: number of different views of a sample; None: a new one each epoch.
        num_workers: worker processes per loader.
        noise: share of the training labels (not of the validation part's) that are replaced by a wrong one.
        groups: merge the classes, in their order, into so many groups, which are then the labels; None: as they are.
    """

    def __init__(
        self,
        source: Literal["embedded", "system", "path"] = "embedded",
        root: str | None = None,
        labelled: int | None = None,
        unlabelled: Literal["keep", "drop"] = "keep",
        validation: int = 0,
        split_seed: int = 0,
        batch_size: int = 128,
        flip: bool = True,
        shift: int = 2,
        views: int | None = None,
        num_workers: int = 0,
        noise: float = 0.0,
        groups: int | None = None,
    ) -> None:
        super().__init__(
            class_names=CLASS_NAMES,
            samples=10_000 if source == "embedded" else 60_000,
            channels=1,
            image_size=(28, 28),
            mean=[0.286],
            std=[0.353],
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
        if source == "path" and root is None:
            raise UserError("FashionMNIST: source=path needs root, the folder of the idx files.")
        if not 0 <= noise <= 1:
            raise UserError(f"FashionMNIST: noise={noise} is no share of the labels, use a number from 0 to 1.")
        self.source, self.noise, self.groups = source, noise, groups
        self.folder = SYSTEM if source == "system" else Path(root or "")

    def load(self) -> tuple[Samples, Samples]:
        """Read the four arrays and check that they are what they should be."""
        arrays = read_embedded() if self.source == "embedded" else read_folder(self.folder)
        train, test = (
            self.in_memory(arrays[f"{part}_images"][:, None], arrays[f"{part}_labels"], self.folder)
            for part in ("train", "test")
        )
        return train, test
