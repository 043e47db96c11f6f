"""The layouts, what crops are, and files as people have them."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.datamodules.image_files import IMAGENET_MEAN
from kdzoo.datamodules.segmentation_data import IGNORE
from kdzoo.datamodules.segmentation_folder import CITYSCAPES, SegmentationFolder, id_table, read_mask
from kdzoo.errors import UserError

NAMES = ["ground", "cat", "dog"]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def picture(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def root(tmp_path):
    """Two folders, of which the ids are the picture's red channel modulo 3."""
    for part, count in ("train", 4), ("val", 2):
        for number in range(count):
            pixels = picture(number)
            save(tmp_path / "images" / part / f"{number}.png", pixels)
            save(tmp_path / "masks" / part / f"{number}.png", pixels[..., 0] % 3)
    return tmp_path


def folder(root, **options):
    return SegmentationFolder(**{"root": str(root), "layout": "folders", "class_names": NAMES, "size": 16, **options})


def first(data, part="train", **options):
    loader = data.train_dataloader() if part == "train" else data.test_dataloader()
    return data.prepare(next(iter(loader)), augment=part == "train")


def test_voc(tmp_path):
    for number in range(3):
        mask = Image.fromarray(np.array([[0, 20, 255]], np.uint8), mode="P")
        mask.putpalette([7] * 768)  # the ids are the indices, whatever the colours
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        mask.save(tmp_path / "SegmentationClass" / f"2007_{number}.png")
        save(tmp_path / "JPEGImages" / f"2007_{number}.jpg", picture(number, 1, 3))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n")
    (lists / "val.txt").write_text("2007_2\n")
    data = SegmentationFolder(str(tmp_path))
    assert data.spec["classes"] == 21
    batch = first(data, "test")
    assert batch["name"] == ["2007_2"]
    assert batch["mask"].tolist() == [[[0, 20, IGNORE]]]
    assert data.describe() == "2 images"
    with pytest.raises(UserError, match=r"There is no list .*train_aug\.txt"):
        SegmentationFolder(str(tmp_path), train="train_aug", masks="SegmentationClassAug").setup()
    (lists / "val.txt").write_text("2007_9\n")
    with pytest.raises(UserError, match=r"2007_9\.jpg is missing"):
        SegmentationFolder(str(tmp_path)).setup()


def test_ade20k(tmp_path):
    for part in "training", "validation":
        save(tmp_path / "images" / part / "a.jpg", picture(0, 1, 3))
        save(tmp_path / "annotations" / part / "a.png", [[0, 1, 150]])
    data = SegmentationFolder(str(tmp_path), layout="ade20k")
    assert data.spec["classes"] == 150
    assert first(data, "test")["mask"].tolist() == [[[IGNORE, 0, 149]]]


def test_cityscapes(tmp_path):
    for part in "train", "val":
        save(tmp_path / "leftImg8bit" / part / "bonn" / "bonn_1_leftImg8bit.png", picture(0, 1, 4))
        save(tmp_path / "gtFine" / part / "bonn" / "bonn_1_gtFine_labelIds.png", [[7, 33, 6, 0]])
    data = SegmentationFolder(str(tmp_path), layout="cityscapes")
    batch = first(data, "test")
    assert batch["mask"].tolist() == [[[0, 18, IGNORE, IGNORE]]]
    assert batch["name"] == ["bonn/bonn_1"]
    assert data.spec["class_names"] == list(CITYSCAPES)


def test_a_test_image_is_whole(root):
    data = folder(root)
    batch = first(data, "test")
    expected = torch.from_numpy(picture(0)).permute(2, 0, 1)[None]
    assert torch.equal((255 * batch["image"]).round().byte(), expected)
    assert torch.equal(batch["mask"], expected[:, 0].long() % 3)


def test_a_crop_keeps_image_and_mask_together(root):
    """Without resizing every pixel of a crop still has the id that its colour says, mirrored or not."""
    data = folder(root, scale=(1.0, 1.0), validation=1)
    data.setup()
    assert (len(data.train_set), len(data.validation_set), len(data.test_set)) == (3, 1, 2)
    batches = [data.prepare(data.train_set.__getitems__([(0, view)]), augment=True) for view in range(20)]
    for batch in batches:
        assert batch["image"].shape == (1, 3, 16, 16)
        assert torch.equal((255 * batch["image"][:, 0]).round().long() % 3, batch["mask"])
    assert len({batch["image"].numpy().tobytes() for batch in batches}) > 15
    again = data.prepare(data.train_set.__getitems__([(0, 7)]), augment=True)
    assert torch.equal(again["image"], batches[7]["image"])  # a function of (index, view)


def test_what_a_crop_has_beside_the_image_is_ignored(root):
    data = folder(root, scale=(0.5, 0.5), size=24, flip=False)
    batch = first(data)
    assert (batch["mask"][:, :10, :15] != IGNORE).all()
    assert (batch["mask"][:, 10:] == IGNORE).all()
    assert (batch["mask"][:, :, 15:] == IGNORE).all()
    ground = batch["image"][:, :, 10:].mean((0, 2, 3))
    torch.testing.assert_close(ground, torch.tensor(IMAGENET_MEAN), atol=0.003, rtol=0)


def test_ids_beyond_the_classes_name_the_file(root):
    save(root / "masks" / "val" / "0.png", np.full((20, 30), 3))
    with pytest.raises(UserError, match=r"0\.png has the id 3, which none of the 3 classes has"):
        first(folder(root), "test")


def test_a_mask_of_another_size_names_both_files(root):
    save(root / "masks" / "val" / "0.png", np.zeros((20, 31)))
    with pytest.raises(UserError, match=r"0\.png is 31 x 20 pixels and its image .*0\.png 30 x 20"):
        first(folder(root), "test")


def test_a_mask_in_colours_is_refused(root):
    save(root / "masks" / "val" / "0.png", picture(0))
    with pytest.raises(UserError, match=r"0\.png has pixels of the kind RGB, and a mask has one id in each"):
        first(folder(root), "test")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_damaged_file_is_named(root, part):
    (root / part / "val" / "0.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(UserError, match=rf"{part}/val/0\.png cannot be decoded"):
        first(folder(root), "test")


def test_masks_of_16_bits(tmp_path):
    Image.fromarray(np.array([[0, 2, 255]], np.uint16)).save(tmp_path / "deep.png")
    table = id_table("folders", 3)
    assert read_mask(tmp_path / "deep.png", table).tolist() == [[0, 2, IGNORE]]
    Image.fromarray(np.array([[0, 2, 300]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match="has the id 300, which none of the 3 classes"):
        read_mask(tmp_path / "deep.png", table)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
def test_images_of_every_kind(root, mode):
    levels = np.linspace(0, 255, 600).reshape(20, 30).astype(np.uint8)
    image = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    image.save(root / "images" / "val" / "0.png")
    batch = first(folder(root), "test")
    expected = torch.from_numpy(levels).expand(1, 3, -1, -1)
    assert torch.equal((255 * batch["image"]).round().byte(), expected)


def test_what_is_missing_is_named(root):
    (root / "masks" / "train" / "3.png").unlink()
    with pytest.raises(UserError, match=r"masks/train/3\.png is missing"):
        folder(root).setup()
    with pytest.raises(UserError, match=r"There is no folder .*images/none"):
        folder(root, train="none").setup()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_names": None}, "class_names must be given for layout=folders"),
        ({"layout": "voc"}, "class_names must be given for layout=folders, and for no other"),
        ({"class_names": ["one"]}, "2 to 255 classes"),
        ({"scale": (2.0, 0.5)}, "scale="),
        ({"size": 0}, "side of a training image"),
    ],
)
def test_wrong_arguments_are_refused(root, wrong, message):
    with pytest.raises(UserError, match=message):
        folder(root, **wrong)


def test_pictures_to_predict(root, tmp_path):
    mine = tmp_path / "mine"
    save(mine / "a.png", picture(0, 5, 6))
    save(mine / "deeper" / "b.png", picture(1, 7, 8)[..., 0])
    batches = [
        folder(root).prepare(batch, augment=False) for batch in folder(root, image=str(mine)).predict_dataloader()
    ]
    assert [batch["name"] for batch in batches] == [["a"], ["deeper/b"]]
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 3, 5, 6), (1, 3, 7, 8)]
    with pytest.raises(UserError, match="There is no picture at"):
        folder(root, image=str(tmp_path / "none")).predict_dataloader()
