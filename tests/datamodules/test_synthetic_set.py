"""A synthetic set as data: the synthetic images to train on, the real test part to be judged by."""

import pytest
import torch

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.synthetic_set import SyntheticSet
from kdzoo.errors import UserError
from kdzoo.export.synthetic_set import export_synthetic_set

REAL = FashionMNIST()
IMAGES = torch.randn(20, 1, 28, 28)
LABELS = torch.arange(10).repeat_interleave(2)


def facts(**changes) -> dict:
    spec = {key: REAL.spec[key] for key in ("classes", "channels", "image_size", "class_names")}
    statistics = {"mean": [0.25], "std": [0.5]}
    return {"method": "DM", "preprocessing": statistics, "spec": {**spec, **changes}}


@pytest.fixture
def folder(tmp_path):
    export_synthetic_set(IMAGES, LABELS, IMAGES, {}, facts(), tmp_path / "set")
    return tmp_path / "set"


def test_training_batches_are_the_synthetic_pixels(folder):
    data = SyntheticSet(str(folder), "fashion_mnist", batch_size=20, flip=False, shift=0)
    (batch,) = data.train_dataloader()
    batch = data.prepare(batch, augment=True)
    torch.testing.assert_close(batch["image"], (IMAGES * 0.5 + 0.25)[batch["index"]])
    assert torch.equal(batch["label"], LABELS[batch["index"]])
    assert (data.spec["mean"], data.spec["std"]) == ([0.25], [0.5])


def test_they_are_augmented_like_any_others(folder):
    data = SyntheticSet(str(folder), "fashion_mnist", batch_size=20, flip=True, shift=2)
    (raw,) = data.train_dataloader()
    batch = data.prepare(raw, augment=True)
    assert batch["image"].shape == (20, 1, 28, 28)
    assert not torch.equal(batch["image"], raw["image"])
    assert torch.equal(data.prepare(raw, augment=False)["image"], raw["image"])


def test_the_test_part_is_the_real_one(folder):
    data = SyntheticSet(str(folder), "fashion_mnist", {"source": "embedded"})
    batch = data.prepare(next(iter(data.test_dataloader())), augment=False)
    REAL.setup()
    assert len(data.test_set) == len(REAL.test_set)
    torch.testing.assert_close(batch["image"], REAL.test_set.images[: len(batch["image"])] / 255)
    assert data.fingerprint() == SyntheticSet(str(folder), "fashion_mnist").fingerprint()


def test_soft_labels_become_the_most_likely_class(tmp_path):
    soft = torch.nn.functional.one_hot(LABELS, 10) * 0.5 + 0.05
    export_synthetic_set(IMAGES, soft, IMAGES, {}, facts(), tmp_path / "set")
    data = SyntheticSet(str(tmp_path / "set"), "fashion_mnist")
    data.setup()
    assert torch.equal(data.train_set.labels, LABELS)


def test_a_test_part_of_other_data_is_refused(tmp_path):
    names = [f"class {number}" for number in range(10)]
    export_synthetic_set(IMAGES, LABELS, IMAGES, {}, facts(class_names=names), tmp_path / "set")
    with pytest.raises(UserError, match="knows other classes than its test part"):
        SyntheticSet(str(tmp_path / "set"), "fashion_mnist").setup()
    with pytest.raises(UserError, match="no data module named 'fashion_minst'"):
        SyntheticSet(str(tmp_path / "set"), "fashion_minst")
    with pytest.raises(UserError, match="was made for channels = 1, but its test part has channels = 3"):
        SyntheticSet(str(tmp_path / "set"), "sr_folder", {"scale": 2}).setup()


def test_a_data_module_without_images_is_refused(folder, site):
    module = "from lightning.pytorch import LightningDataModule\n\nclass Fake(LightningDataModule): ...\n"
    site.install("kdzoo-fake", "1.0", "[kdzoo.data]\nfake = fake_module:Fake\n", fake_module=module)
    with pytest.raises(UserError, match="test=fake are no images with labels"):
        SyntheticSet(str(folder), "fake")


def test_a_folder_without_a_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no intact synthetic set"):
        SyntheticSet(str(tmp_path), "fashion_mnist")
