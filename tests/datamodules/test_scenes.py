"""Scenes are a function of their number, their masks are exact, and the parts share nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.datamodules import scenes
from kdzoo.datamodules.scenes import DRAWS, Scenes, Stock, compose, garment
from kdzoo.errors import UserError

FEW = {"scenes": 12, "validation": 4, "test": 6}


@pytest.fixture(scope="module")
def few():
    data = Scenes(**FEW)
    data.setup()
    return data


def test_batches(few):
    batch = few.prepare(next(iter(few.train_dataloader())), augment=True)
    assert batch["image"].shape == (12, 3, 64, 64)
    assert batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert batch["mask"].shape == (12, 64, 64)
    assert batch["mask"].dtype == torch.int64
    assert set(batch["mask"].unique().tolist()) <= set(range(11))
    assert few.spec["classes"] == 11
    assert few.spec["class_names"][0] == "background"


def test_a_scene_depends_on_its_number_alone(few):
    more = Scenes(scenes=20, validation=5, test=6)
    more.setup()
    for part, count in ("train_set", 12), ("validation_set", 4), ("test_set", 6):
        torch.testing.assert_close(getattr(more, part).images[:count], getattr(few, part).images)
        torch.testing.assert_close(getattr(more, part).masks[:count], getattr(few, part).masks)
    assert few.fingerprint() != more.fingerprint()
    again = Scenes(**FEW)
    assert again.fingerprint() == few.fingerprint()


def test_the_parts_are_numbered_one_after_the_other(few):
    parts = few.train_set, few.validation_set, few.test_set
    assert [part.first for part in parts] == [0, 12, 16]
    assert len({image.numpy().tobytes() for part in parts for image in part.images}) == 22


def test_the_parts_share_no_garment_and_no_photograph():
    stocks = Scenes(**FEW).embedded()
    assert [len(stock.labels) for stock in stocks] == [9000, 1000, 10000]
    assert [len(stock.photos) for stock in stocks] == [7, 7, 2]
    for shown, hidden in zip(stocks[0].photos, stocks[1].photos):  # the two sides of one photograph
        assert 0.28 < hidden.shape[1] / (shown.shape[1] + hidden.shape[1]) < 0.32
        assert not np.shares_memory(shown, hidden)
    training = {stocks[0].cut(number).tobytes() for number in range(9000)}
    held_out = {stocks[1].cut(number).tobytes() for number in range(1000)}
    assert len(training & held_out) <= 2  # Fashion-MNIST itself holds a few pictures twice
    assert all(1 <= stock.labels.min() < stock.labels.max() <= 10 for stock in stocks)


def test_images_and_masks_are_flipped_alike(few):
    batch = few.train_set.__getitems__([(number, 3) for number in range(12)])
    plain, flipped = few.prepare(batch, augment=False), few.prepare(batch, augment=True)
    turned = [bool((a != b).any()) for a, b in zip(plain["image"], flipped["image"])]
    assert 0 < sum(turned) < 12
    for number, turn in enumerate(turned):
        for key in "image", "mask":
            expected = plain[key][number].flip(-1) if turn else plain[key][number]
            assert torch.equal(flipped[key][number], expected)


def test_a_composition_is_the_pixels_that_were_pasted():
    """One opaque square of a known colour on a known ground."""
    square = np.full((10, 10, 4), 255, np.uint8)
    square[..., :3] = 200, 0, 0
    stock = Stock([np.full((50, 50, 3), 7, np.uint8)], np.array([4]), lambda number: square, tint=False)
    draws = np.full((3, DRAWS), 0.5)
    draws[0, 5] = 0.0  # one object
    draws[0, 6:] = 0.75  # the ground as bright as it is
    image, mask = compose(stock, draws, size=40, zoom=(0.5, 0.5))
    inside = np.zeros((40, 40), bool)
    inside[10:30, 10:30] = True
    assert (image[inside] == (200, 0, 0)).all()
    assert (image[~inside] == 7).all()
    assert (mask[inside] == 4).all()
    assert not mask[~inside].any()
    draws[0, 5] = 0.999  # two, the second at the upper left corner and hiding a part of the first
    draws[2, 2:4] = 0.0
    later = Stock(stock.photos, np.array([4, 5]), stock.cut, tint=False)
    draws[1, 0], draws[2, 0] = 0.0, 0.9
    _, mask = compose(later, draws, size=40, zoom=(0.5, 0.5))
    assert (mask[:15, :15] == 5).all()  # three quarters of each side lie inside
    assert (mask[15:30, 10:30] == 4).all()


def test_a_garment_is_cut_out_without_holes():
    grey = np.zeros((28, 28), np.uint8)
    grey[5:15, 8:20] = 100
    grey[8:10, 10:14] = 0  # a dark print
    cutout = garment(grey)
    assert cutout.shape == (10, 12, 4)
    assert (cutout[..., 3] == 255).all()
    assert garment(np.zeros((28, 28), np.uint8)).shape == (1, 1, 4)


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"objects": 0}, {"zoom": (0.7, 0.3)}, {"size": 0}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)) if "size" not in wrong else "side of a training image"):
        Scenes(**wrong)


# ------------------------------------------------------------------------------------------ things of Debian's packages


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Folders as the two packages have them: 10 stamps of each class, a drawing, a cartoon, and 10 photographs."""
    generator = np.random.default_rng(0)
    for folders in scenes.CATEGORIES.values():
        folder = tmp_path / "stamps" / folders[-1] / "kinds"
        folder.mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 256, (30, 40, 4), np.uint8)
            pixels[..., 3] = 0
            pixels[5:25, 5:35, 3] = 255
            Image.fromarray(pixels).save(folder / f"{number}.png")
        flat = np.zeros((30, 40, 4), np.uint8)
        flat[5:25, 5:35] = 255
        Image.fromarray(flat).save(folder / "drawing.png")
        (folder / "cartoon").mkdir()
        Image.fromarray(pixels).save(folder / "cartoon" / "a.png")
        Image.fromarray(pixels[..., :3]).save(folder / "opaque.png")
    (tmp_path / "photos").mkdir()
    for number in range(10):
        Image.fromarray(generator.integers(0, 256, (90, 120, 3), np.uint8)).save(tmp_path / "photos" / f"{number}.jpg")
    monkeypatch.setattr(scenes, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(scenes, "PHOTOS", (tmp_path / "none", tmp_path / "photos"))
    return tmp_path


def test_scenes_of_stamps(packages):
    data = Scenes(source="system", size=32, **FEW)
    stocks = data.system()
    assert [len(stock.labels) for stock in stocks] == [35, 5, 10]  # no drawing, no cartoon, nothing opaque
    assert [len(stock.photos) for stock in stocks] == [7, 1, 2]
    for stock in stocks:
        assert np.unique(stock.labels).tolist() == [1, 2, 3, 4, 5]
    cuts = [stock.cut(number).tobytes() for stock in stocks for number in range(len(stock.labels))]
    assert len(set(cuts)) == 50
    assert stocks[0].cut(0).shape == (20, 30, 4)  # without its transparent border
    data.setup()
    assert data.train_set.images.shape == (12, 3, 32, 32)
    assert set(data.train_set.masks.unique().tolist()) <= set(range(6))
    assert data.spec["class_names"] == ["background", "animal", "food", "plant", "vehicle", "object"]


def test_packages_that_are_not_installed_are_named(packages, monkeypatch):
    monkeypatch.setattr(scenes, "PHOTOS", (packages / "none",))
    with pytest.raises(UserError, match="apt-get install mate-backgrounds"):
        Scenes(source="system").setup()
    monkeypatch.setattr(scenes, "STAMPS", packages / "none")
    with pytest.raises(UserError, match="apt-get install tuxpaint-stamps-default"):
        Scenes(source="system").setup()
