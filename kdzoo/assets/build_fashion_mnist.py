"""Write the embedded Fashion-MNIST from Debian's package dataset-fashion-mnist.

Run as `python -m kdzoo.assets.build_fashion_mnist`; the same input gives the same bytes.
10,000 training images (1,000 per class, chosen by seed 0, in their original order) and the 10,000 test images.
"""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch

from kdzoo.datamodules.fashion_mnist import EMBEDDED, SYSTEM, read_folder
from kdzoo.datamodules.image_data import stratified


def main() -> None:
    """Build, and print the size in bytes and the SHA-256 that NOTICE and the test declare."""
    arrays = read_folder(SYSTEM)
    rows = stratified(torch.from_numpy(arrays["train_labels"].astype(np.int64)), 10_000, seed=0)
    arrays |= {"train_images": arrays["train_images"][rows], "train_labels": arrays["train_labels"][rows]}
    target = Path(__file__).parents[1] / EMBEDDED
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            # a fixed date and no host attributes: the same bytes each time
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_LZMA
            with archive.open(member, "w") as file:
                columns_first = array.swapaxes(1, 2) if array.ndim == 3 else array
                np.lib.format.write_array(file, np.ascontiguousarray(columns_first), allow_pickle=False)
    print(target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
