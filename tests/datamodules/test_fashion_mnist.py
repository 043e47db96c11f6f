import gzip
import hashlib
import importlib.resources
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from kdzoo.datamodules import fashion_mnist
from kdzoo.datamodules.fashion_mnist import EMBEDDED, SYSTEM, FashionMNIST
from kdzoo.errors import UserError

SHA256 = "5ac8a3cf11c4c535900a7ff5de12508e856b8214fcee93d9d048a975fd0dcfcd"


def write_idx(folder, train=60, test=20, compress=True, side=28, classes=10):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in ("train", train), ("t10k", test):
        images = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        files = {
            "images-idx3": struct.pack(">4I", 0x0803, count, side, side) + images.tobytes(),
            "labels-idx1": struct.pack(">2I", 0x0801, count) + (np.arange(count) % classes).astype(np.uint8).tobytes(),
        }
        for kind, content in files.items():
            path = folder / f"{prefix}-{kind}-ubyte"
            if compress:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


def test_embedded_file_is_the_declared_one():
    content = importlib.resources.files("kdzoo").joinpath(EMBEDDED).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256
    assert len(content) < 7 * 2**20
    notice = Path(__file__).parents[2] / "NOTICE"
    assert SHA256 in notice.read_text()


def test_embedded_data():
    data = FashionMNIST()
    data.setup()
    assert data.train_set.images.shape == data.test_set.images.shape == (10_000, 1, 28, 28)
    assert (
        torch.bincount(data.train_set.labels).tolist() == torch.bincount(data.test_set.labels).tolist() == [1000] * 10
    )
    share = data.train_set.images / 255
    assert share.mean() == pytest.approx(data.spec["mean"][0], abs=0.002)
    assert share.std() == pytest.approx(data.spec["std"][0], abs=0.002)
    assert data.spec["keys"]["image"]["shape"] == [1, 28, 28]
    assert data.spec["classes"] == len(data.spec["class_names"]) == 10
    assert data.spec["keys"]["index"]["high"] == 10_000


@pytest.mark.skipif(not SYSTEM.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_system_data_holds_the_embedded_ones():
    system, embedded = FashionMNIST(source="system"), FashionMNIST()
    system.setup()
    embedded.setup()
    assert len(system.train_set) == 60_000
    assert torch.equal(system.test_set.images, embedded.test_set.images)
    rows = {image.tobytes() for image in system.train_set.images.numpy()}
    assert all(image.tobytes() in rows for image in embedded.train_set.images.numpy())
    assert system.fingerprint() != embedded.fingerprint()


@pytest.mark.parametrize("compress", [True, False])
def test_files_of_a_folder(tmp_path, compress):
    data = FashionMNIST(source="path", root=str(write_idx(tmp_path, compress=compress)))
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (60, 20)
    assert data.spec["keys"]["index"]["high"] == 60
    assert (
        data.train_set.images[0, 0, 0, :3].tolist()
        == np.random.default_rng(0).integers(0, 256, 60 * 784, np.uint8)[:3].tolist()
    )


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="root"):
        FashionMNIST(source="path")
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path)
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist"):
        FashionMNIST(source="system").setup()


def test_damaged_files(tmp_path):
    folder = write_idx(tmp_path, compress=False)
    good = {path: path.read_bytes() for path in folder.iterdir()}
    images = folder / "train-images-idx3-ubyte"
    for content in (b"", b"\x80\x04K\x01.", good[images][:-1], good[folder / "train-labels-idx1-ubyte"]):
        images.write_bytes(content)
        with pytest.raises(UserError, match="train-images-idx3-ubyte is no intact idx file"):
            FashionMNIST(source="path", root=str(folder)).setup()
    images.unlink()
    packed = gzip.compress(good[images])
    altered = bytearray(good[images])
    altered[500] ^= 1  # one pixel of an archive that still tells the checksum of the original
    swapped = gzip.compress(bytes(altered))[:-8] + packed[-8:]
    for content in (packed[:-100], packed[:1000] + bytes(1000) + packed[2000:], swapped, b"no gzip"):
        (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UserError, match="is no intact idx file"):
            FashionMNIST(source="path", root=str(folder)).setup()


def test_header_of_a_giant_reserves_no_memory(tmp_path):
    folder = write_idx(tmp_path, compress=False)
    (folder / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte is no intact idx file"):
        FashionMNIST(source="path", root=str(folder)).setup()


@pytest.mark.parametrize("wrong", [{"side": 32}, {"classes": 12}])
def test_other_data_in_the_same_format(tmp_path, wrong):
    with pytest.raises(UserError, match="not those that FashionMNIST expects"):
        FashionMNIST(source="path", root=str(write_idx(tmp_path, **wrong))).setup()


def test_empty_part(tmp_path):
    with pytest.raises(UserError, match="test part is empty"):
        FashionMNIST(source="path", root=str(write_idx(tmp_path, test=0))).setup()


def test_noise_is_of_the_training_labels_alone():
    clean, noisy = FashionMNIST(validation=500), FashionMNIST(validation=500, noise=0.2)
    clean.setup(), noisy.setup()
    wrong = clean.train_set.labels != noisy.train_set.labels
    assert wrong.sum() == round(0.2 * 9500)
    shift = (noisy.train_set.labels - clean.train_set.labels)[wrong] % 10
    assert torch.bincount(shift, minlength=10)[1:].min() > 150  # every other class is as likely
    assert torch.equal(clean.validation_set.labels, noisy.validation_set.labels)
    assert torch.equal(clean.test_set.labels, noisy.test_set.labels)
    with pytest.raises(UserError, match=r"noise=1.5 is no share"):
        FashionMNIST(noise=1.5)


def test_classes_are_merged_into_groups():
    plain, grouped = FashionMNIST(), FashionMNIST(groups=3, labelled=30, validation=20)
    plain.setup()
    grouped.setup()
    assert grouped.spec["classes"] == 3
    assert grouped.spec["class_names"] == ["T-shirt/top to Dress", "Coat to Shirt", "Sneaker to Ankle boot"]
    assert grouped.spec["keys"]["class"]["high"] == 10
    batch = grouped.test_set.__getitems__([(row, 0) for row in range(50)])
    assert torch.equal(batch["class"], plain.test_set.labels[:50])
    assert torch.equal(batch["label"], torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])[batch["class"]])
    assert "class" not in plain.test_set.__getitems__([(0, 0)])
    known = grouped.train_set.labels >= 0
    assert known.sum() == 30
    for groups in (0, 1, 11):
        with pytest.raises(UserError, match=rf"10 classes cannot make groups={groups}, use a number from 2 to 10"):
            _ = FashionMNIST(groups=groups).spec
