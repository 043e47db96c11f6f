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


def test_missing_parts_and_other_sources(root, tmp_path):
    for name in "", "torch/image_folder":
        with pytest.raises(UserError, match="no folder for the part 'nothing'"):
            timm_data(root, name=name, test_split="nothing").setup()
    with pytest.raises(UserError, match="local folders only, not 'hfds/cifar10'"):
        timm_data(root, name="hfds/cifar10")
    with pytest.raises(UserError, match="is no folder"):
        timm_data(tmp_path / "nowhere")
    with pytest.raises(UserError, match="timm cannot open 'torch/cifar10'"):
        timm_data(root, name="torch/cifar10").setup()
    with pytest.raises(UserError, match="holds 2 classes, but classes=3"):
        timm_data(root, classes=3).setup()
    write_images(root / "val", classes=("c",))
    with pytest.raises(UserError, match="hold different classes"):
        timm_data(root).setup()
