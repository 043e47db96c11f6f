import struct
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from kdzoo.datamodules.timm_dataset import TimmDataset
from kdzoo.errors import UserError


def write_images(folder, classes=("a", "b"), count=4):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((30, 30, 3), 10 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def timm_data(root, name="", **options):
    return TimmDataset(name, str(root), **{"image_size": 16, "batch_size": 4, **options})


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", count=2)
    return tmp_path


def test_folders_with_timms_synonyms(root):
    data = timm_data(root, classes=2)
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (8, 4)
    assert data.spec["class_names"] == ["a", "b"]
    batch = data.prepare(next(iter(data.test_dataloader())), augment=False)
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert (batch["image"][:, 0, 0, 0] * 255).round().tolist() == [0, 10, 0, 10]
    assert data.fingerprint() == timm_data(root, batch_size=1).fingerprint()


def test_corrupt_image_is_reported_and_not_replaced(root):
    (root / "val" / "a" / "1.png").write_text("no image")
    data = timm_data(root)
    batch = next(iter(data.test_dataloader()))
    with pytest.raises(UserError, match=r"val/a/1\.png cannot be decoded"):
        data.prepare(batch, augment=False)
    data = timm_data(root, corrupt="skip")
    assert data.prepare(next(iter(data.test_dataloader())), augment=False)["label"].tolist() == [0, 1, 1]
    with pytest.warns(UserWarning, match="1 images cannot be decoded"):
        data.teardown("test")


def test_set_of_torchvision_through_timm(root):
    data = timm_data(root, name="torch/image_folder")
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (8, 4)
    assert next(iter(data.test_dataloader()))["label"].tolist() == [0, 0, 1, 1]
    (root / "val" / "b" / "0.png").write_text("no image")
    with pytest.raises(UserError, match=rf"^{root}/val/b/0\.png cannot be decoded"):
        data.prepare(next(iter(data.test_dataloader())), augment=False)


def test_digits_through_timm(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix in "train", "t10k":
        images = struct.pack(">4I", 0x0803, 20, 28, 28) + bytes([255]) * 20 * 28 * 28
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 20) + bytes(range(10)) * 2)
    data = timm_data(tmp_path, name="torch/mnist", classes=10)
    batch = data.prepare(next(iter(data.test_dataloader())), augment=False)
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].min() == 1


def test_first_of_a_classs_names_counts(root):
    class Synonyms:
        class_to_idx: ClassVar = {"tench": 1, "Tinca tinca": 1, "hen": 0}

    assert timm_data(root)._names(Synonyms()) == ["hen", "tench"]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches(root, workers):
    data = timm_data(root, num_workers=workers)
    batches = list(data.train_dataloader())
    assert sorted(row for batch in batches for row in batch["index"].tolist()) == list(range(8))
    for batch in batches:  # ten grey levels per number, four numbers per class
        assert (batch["image"][:, 0, 8, 8] // 10).tolist() == (batch["index"] % 4).tolist()
        assert (batch["index"] // 4).tolist() == batch["label"].tolist()


def test_archive_and_its_pickled_index_are_not_opened(root):
    (root / "train.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"not the archive 'train\.tar'"):
        timm_data(root, train_split="train.tar")


def test_missing_parts_and_other_sources(root, tmp_path):
    for name in "", "torch/image_folder":
        with pytest.raises(UserError, match="no folder for the part 'nothing'"):
            timm_data(root, name=name, test_split="nothing").setup()
    for name in "hfds/cifar10", "wds/pets", "torch/qmnist", "torch/inaturalist", "pets":
        with pytest.raises(UserError, match=f"local folders only, not '{name}'"):
            timm_data(root, name=name)
    with pytest.raises(UserError, match="is no folder"):
        timm_data(tmp_path / "nowhere")
    with pytest.raises(UserError, match="timm cannot open 'torch/cifar10'"):
        timm_data(root, name="torch/cifar10").setup()
    with pytest.raises(UserError, match="holds 2 classes, but classes=3"):
        timm_data(root, classes=3).setup()
    write_images(root / "val", classes=("c",))
    with pytest.raises(UserError, match="hold different classes"):
        timm_data(root).setup()
