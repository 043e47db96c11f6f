"""Patches of photographs."""

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from kdzoo.datamodules.photo_patches import PhotoPatches
from kdzoo.errors import UserError
from kdzoo.image.kd import KD
from kdzoo.image.supervised import Supervised
from kdzoo.teachers.sources import Teacher, untrained_teachers


@pytest.fixture
def photographs(tmp_path):
    """Two, of which the colour says from which column of which one a pixel is."""
    for number in range(2):
        pixels = np.zeros((50, 200, 3), np.uint8)
        pixels[..., 0], pixels[..., 2] = np.arange(200), 100 * number
        Image.fromarray(pixels).save(tmp_path / f"photo{number}.png")
    return tmp_path


def test_parts_lie_apart(photographs):
    data = PhotoPatches(str(photographs), image_size=16, patch=(16, 16), patches=30, test_patches=10, validation=6)
    data.setup()
    assert data.samples == data.spec["keys"]["index"]["high"] == 54
    assert data.spec["class_names"] == ["photo0", "photo1"]
    train, test = data.train_set, data.test_set
    assert (len(train), len(data.validation_set), len(test)) == (54, 6, 20)
    assert train.images.dtype == torch.uint8
    assert train.images.shape[1:] == (3, 16, 16)
    for part, (first, last) in (train, (0, 120)), (test, (140, 200)):
        assert first <= int(part.images[:, 0].min()) <= int(part.images[:, 0].max()) < last
        assert torch.equal(part.images[:, 2].amax((1, 2)), 100 * part.labels)
    again = PhotoPatches(str(photographs), image_size=16, patch=(16, 16), patches=30, test_patches=10, validation=6)
    assert again.fingerprint() == data.fingerprint()


def test_patches_of_all_sizes_come_out_alike():
    data = PhotoPatches(image_size=32, patch=(20, 400), patches=3, test_patches=1)
    data.setup()
    assert len(data.spec["class_names"]) == 9
    assert data.train_set.images.shape == (27, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch": (64, 160)}, "photo0.png is too small for patches of 64 pixels, of which its part is 120 x 50"),
        ({"patch": (20, 10)}, "patch two rising sides"),
        ({"root": "/nowhere"}, "/nowhere holds 0 photographs: give 2 or more"),
    ],
)
def test_bad_input(photographs, options, words):
    with pytest.raises(UserError, match=words):
        PhotoPatches(**{"root": str(photographs), **options}).setup()


def test_without_labels_a_student_is_judged_by_its_teacher(photographs):
    data = PhotoPatches(
        str(photographs), image_size=32, patch=(16, 40), patches=20, test_patches=10, classes=7, validation=10
    )
    data.setup()
    assert set(data.train_set.labels.tolist()) == {-1}
    with untrained_teachers():
        method = KD("cifar_resnet8", Teacher(timm="cifar_resnet8", weights="x"))
        trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.fit(method, datamodule=data)
        assert list(trainer.callback_metrics).count("val/agreement") == 1
        method.predictions_of_teacher = lambda batch: method.student(batch["image"]).argmax(1)
        (scores,) = trainer.test(method, datamodule=data)
    assert scores == {"test/agreement": 100.0}
    method = Supervised("cifar_resnet8")
    with pytest.raises(UserError, match="Supervised has no teacher, and these data have no labels"):
        method.build_for(data.spec)
