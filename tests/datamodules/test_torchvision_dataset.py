import hashlib
import os
import pickle
import socket
import struct

import numpy as np
import pytest
import torch
import torchvision

from kdzoo.datamodules.torchvision_dataset import KNOWN, TorchvisionDataset
from kdzoo.errors import UserError


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10 of which torchvision believes that it is the original."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def batch(name):
        data = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        return [name, write_pickle(folder / name, {"data": data, "labels": list(range(10)) * 2})]

    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(known, "test_list", [batch("test_batch")])
    names = write_pickle(folder / "batches.meta", {"label_names": list(KNOWN["CIFAR10"].class_names)})
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": names})
    return folder


def test_cifar(cifar):
    data = TorchvisionDataset("CIFAR10", root=str(cifar.parent), batch_size=8)
    spec = data.spec
    assert spec["keys"]["index"]["high"] == 50_000  # without reading
    data.setup()
    assert data.train_set.images.shape == (40, 3, 32, 32)
    assert data.test_set.labels.tolist() == list(range(10)) * 2
    raw = pickle.loads((cifar / "data_batch_1").read_bytes())["data"]
    assert np.array_equal(data.train_set.images[3].numpy(), raw[3].reshape(3, 32, 32))
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].is_contiguous()
    assert data.prepare(batch, augment=True)["image"].shape == (8, 3, 32, 32)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_2", "test_batch", "batches.meta"])
def test_altered_pickle_is_not_opened(cifar, tmp_path, name):
    fired = tmp_path / "fired"
    (cifar / name).write_bytes(pickle.dumps(Bomb(fired)))
    with pytest.raises(UserError, match=r"CIFAR10 is missing or damaged in .*cifar-10-batches-py"):
        TorchvisionDataset("CIFAR10", root=str(tmp_path)).setup()
    assert not fired.exists()
    pickle.loads((cifar / name).read_bytes())  # the bomb does work
    assert fired.exists()


def test_old_cache_of_torchvision_is_not_unpickled(tmp_path):
    processed, fired = tmp_path / "MNIST" / "processed", tmp_path / "fired"
    processed.mkdir(parents=True)
    for name in "training.pt", "test.pt":
        torch.save((Bomb(fired), torch.zeros(1)), processed / name)
    with pytest.raises(UserError, match="MNIST is missing or damaged"):
        TorchvisionDataset("MNIST", root=str(tmp_path)).setup()
    assert not fired.exists()


@pytest.mark.parametrize("name", KNOWN)
def test_spec_needs_no_files_and_missing_ones_are_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # nothing is ever downloaded
    data = TorchvisionDataset(name, root=str(tmp_path))
    spec, known = data.spec, KNOWN[name]
    assert spec["classes"] == len(set(known.class_names)) == (100 if name == "CIFAR100" else 10)
    assert len(spec["mean"]) == len(spec["std"]) == spec["channels"]
    with pytest.raises(UserError, match=f"{name} is missing .*does not download") as error:
        data.setup()
    assert str(tmp_path / known.folder) in str(error.value)
    assert not any(tmp_path.iterdir())


def test_unknown_name():
    with pytest.raises(UserError, match=r"'CIFAR11'\. Near: CIFAR10"):
        TorchvisionDataset("CIFAR11")


def test_grey_images(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for prefix in "train", "t10k":
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 20, 28, 28) + pixels.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 20) + bytes(range(10)) * 2)
    data = TorchvisionDataset("MNIST", root=str(tmp_path))
    data.setup()
    assert torch.equal(data.test_set.images[:, 0], torch.from_numpy(pixels))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 20) + bytes(range(20)))
    with pytest.raises(UserError, match="MNIST/raw are not those that TorchvisionDataset expects"):
        TorchvisionDataset("MNIST", root=str(tmp_path)).setup()
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(UserError, match="MNIST is missing or damaged"):
        TorchvisionDataset("MNIST", root=str(tmp_path)).setup()
