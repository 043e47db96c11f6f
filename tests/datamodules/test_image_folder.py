import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.datamodules.augment import crop_box
from kdzoo.datamodules.image_folder import ImageFolder
from kdzoo.errors import UserError

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def write_images(folder, per_class=6, classes=tuple(COLOURS), side=40):
    """Noisy PNGs, wider than high, one colour per class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 56, (side, side + 8, 3)) + np.array(COLOURS[name])
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def split(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "val", per_class=2)
    return tmp_path


def folder(root, **options):
    return ImageFolder(str(root), **{"image_size": 16, "batch_size": 4, **options})


def collect(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])


def test_parts_labels_and_pixels(split):
    data = folder(split)
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (18, 6)
    assert data.describe() == "18 images"
    assert data.spec["class_names"] == ["blue", "green", "red"]
    assert data.spec["keys"]["image"]["shape"] == [3, 16, 16]
    train, test = collect(data.train_dataloader()), collect(data.test_dataloader())
    for batch in train, test:
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].shape[1:] == (3, 16, 16)
        strongest = batch["image"].float().mean((2, 3)).argmax(1)
        assert torch.equal(2 - strongest, batch["label"])
    assert test["index"].tolist() == list(range(18, 24))


def test_crops_are_a_function_of_index_and_view(split):
    data = folder(split, scale=(0.3, 0.6))
    data.setup()
    batch = data.train_set.__getitems__([(7, 2), (3, 0)])
    for row, (index, view) in enumerate([(7, 2), (3, 0)]):
        with Image.open(data.train_set.path(data.train_set.images[index])) as image:
            box = crop_box(0, index, view, image.height, image.width, (0.3, 0.6))
            expected = image.resize((16, 16), Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(batch["image"][row].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert not torch.equal(batch["image"], data.train_set.__getitems__([(7, 3), (3, 1)])["image"])


def test_evaluation_sees_the_centre(split):
    data = folder(split, image_size=35)
    data.setup()
    with Image.open(data.test_set.path(data.test_set.images[0])) as image:
        expected = np.asarray(image)[2:37, 6:41]  # 35 = 0.875 * 40: no resampling is left to do
        offsets = [(image.height - 35) // 2, (image.width - 35) // 2]
    assert offsets == [2, 6]
    result = data.test_set.__getitems__([(0, 0)])["image"][0].permute(1, 2, 0).numpy()
    assert np.array_equal(result, expected)


def test_prepare_makes_floats_and_flips_only_for_training(split):
    data = folder(split)
    batch = next(iter(data.train_dataloader()))
    plain, augmented = data.prepare(dict(batch), augment=False), data.prepare(dict(batch), augment=True)
    assert torch.equal(plain["image"], batch["image"].float() / 255)
    for one, other in zip(plain["image"], augmented["image"]):
        assert torch.equal(one, other) or torch.equal(one.flip(-1), other)


def test_tree_without_parts_is_split(tmp_path):
    data = folder(write_images(tmp_path, per_class=10), test_fraction=0.3)
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (21, 9)
    assert data.test_set.labels.bincount().tolist() == [3, 3, 3]
    assert not set(data.train_set.images.tolist()) & set(data.test_set.images.tolist())
    other = folder(tmp_path, test_fraction=0.3, split_seed=1)
    assert other.fingerprint() != data.fingerprint()
    assert folder(tmp_path, test_fraction=0.3, batch_size=1).fingerprint() == data.fingerprint()


def test_hidden_files_and_folders_are_left_out(split):
    before = folder(split).fingerprint()
    (split / "train" / "red" / "._0.png").write_text("what macOS leaves behind")
    (split / "train" / "red" / "notes.txt").write_text("no image")
    (split / "train" / ".cache").mkdir()
    assert folder(split).fingerprint() == before


def test_validation_is_taken_from_the_training_part_and_not_augmented(split):
    data = folder(split, validation=6)
    data.setup()
    assert (len(data.train_set), len(data.validation_set), len(data.test_set)) == (12, 6, 6)
    assert data.train_set.training
    assert not data.validation_set.training


def test_fingerprint_follows_the_files_and_not_the_place(split, tmp_path):
    before = folder(split).fingerprint()
    moved = tmp_path / "moved"
    moved.mkdir()
    for part in "train", "val":
        (split / part).rename(moved / part)
    assert folder(moved).fingerprint() == before
    (moved / "train" / "red" / "0.png").rename(moved / "train" / "red" / "9.png")
    assert folder(moved).fingerprint() != before
    others = {}, {"image_size": 8}, {"scale": (0.5, 1.0)}
    assert len({folder(moved, **other).transform_fingerprint() for other in others}) == 3


def test_spec_without_the_disk():
    data = ImageFolder("nowhere", classes=1000)
    assert data.spec["classes"] == 1000
    assert data.spec["keys"]["image"]["shape"] == [3, 224, 224]
    with pytest.raises(UserError, match="nowhere is no folder"):
        data.setup()


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_file_is_named(split, workers):
    truncate(split / "train" / "red" / "0.png")
    data = folder(split, num_workers=workers)
    message = r"^\S*train/red/0\.png cannot be decoded \(.*\): repair .* corrupt=skip\.$"
    with pytest.raises(UserError, match=message):
        [data.prepare(batch, augment=True) for batch in data.train_dataloader()]


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_files_can_be_left_out(split, workers):
    truncate(split / "train" / "red" / "0.png")
    (split / "train" / "blue" / "1.png").write_text("no image")
    data = folder(split, corrupt="skip", batch_size=18, num_workers=workers)
    for _ in range(2):
        batches = [data.prepare(batch, augment=True) for batch in data.train_dataloader()]
        assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == sorted({*range(18)} - {1, 12})
        assert all(set(batch) == {"image", "label", "index", "view"} for batch in batches)
    with pytest.warns(UserWarning, match=r"2 images .* left out: \S*blue/1.png, \S*red/0.png"):
        data.teardown("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.teardown("fit")


def test_batch_without_one_good_image(split):
    for path in (split / "val").glob("*/*.png"):
        truncate(path)
    data = folder(split, corrupt="skip")
    with pytest.raises(UserError, match="No image of a whole batch"):
        data.prepare(next(iter(data.test_dataloader())), augment=False)


def test_decompression_bomb_is_not_decoded(split, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # PIL refuses twice as many
    data = folder(split)
    with pytest.raises(UserError, match="DecompressionBombError"):
        data.prepare(next(iter(data.test_dataloader())), augment=False)


def test_workers_change_nothing(split):
    alone, helped = folder(split), folder(split, num_workers=2)
    one, other = collect(alone.train_dataloader()), collect(helped.train_dataloader())
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_grey_and_transparent_images(split):
    Image.new("L", (30, 30), 100).save(split / "val" / "red" / "0.png")
    Image.new("RGBA", (30, 30), (10, 20, 30, 40)).save(split / "val" / "red" / "1.png")
    data = folder(split)
    data.setup()
    pixels = data.test_set.__getitems__([(4, 0), (5, 0)])["image"]
    assert pixels[0].unique().tolist() == [100]
    assert pixels[1, :, 0, 0].tolist() == [10, 20, 30]


def break_tree(root, kind):
    if kind == "empty":
        for name in COLOURS:
            for part in "train", "val":
                for path in (root / part / name).iterdir():
                    path.unlink()
                (root / part / name).rmdir()
    elif kind == "empty class":
        (root / "train" / "new").mkdir()
    elif kind == "class only in val":
        (root / "val" / "red").rename(root / "val" / "pink")
    elif kind == "no val":
        (root / "val").rename(root / "other")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("empty", {}, "train holds no class folders"),
        ("empty class", {}, "train/new holds no images"),
        ("class only in val", {}, "val/pink is a class that the training part lacks"),
        ("no val", {}, "only one of train/ and val/"),
        ("whole", {"classes": 5}, "holds 3 classes, but classes=5"),
        ("whole", {"scale": (0.0, 1.0)}, "scale="),
        ("whole", {"test_fraction": 1.0}, "test_fraction=1.0"),
        ("whole", {"image_size": 0}, "image_size=0 is too small"),
    ],
)
def test_wrong_folders_and_arguments(split, kind, options, message):
    break_tree(split, kind)
    with pytest.raises(UserError, match=message):
        folder(split, **options).setup()


def test_folder_without_anything(tmp_path):
    with pytest.raises(UserError, match="holds no class folders"):
        folder(tmp_path).setup()
