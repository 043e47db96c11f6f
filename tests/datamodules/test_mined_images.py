"""Mining: which images of a pool are kept, in parts of arrays and of files, and that it is found once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.image_data import Samples
from kdzoo.datamodules.mined_images import Best, Joined, MinedImages, Source, in_grey, thumbnails
from kdzoo.datamodules.photo_patches import PhotoPatches
from kdzoo.errors import UserError
from kdzoo.export.image import export_image_network, load_image_network
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher

PATCHES = {"image_size": 28, "patches": 20, "test_patches": 1}  # 180 in colour


@pytest.fixture
def scorer(tmp_path):
    torch.manual_seed(0)
    spec = FashionMNIST().spec
    export_image_network(build("cnn_14k", spec), spec, tmp_path / "scorer")
    return Teacher(checkpoint=str(tmp_path / "scorer"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDZOO_CACHE", str(tmp_path / "cache"))


def mined(scorer, **options):
    options = {"duplicate": None, "per_class": 20, **options}
    data = Source("fashion_mnist", {"labelled": 100, "shift": 0, "flip": False})
    return MinedImages(data, scorer, [Source("photo_patches", PATCHES)], **options)


def test_each_class_keeps_its_best_whatever_the_batches():
    torch.manual_seed(0)
    scores = torch.rand(50, 4).round(decimals=1)  # with ties
    expected = set()
    for c in range(4):
        expected |= set(sorted(range(50), key=lambda n: (-scores[n, c], n))[:6])
    for size in (50, 7, 1):
        best = Best(4, 6)
        for numbers in torch.arange(50).split(size):
            best.add(numbers, scores[numbers])
        assert best.chosen().tolist() == sorted(expected)


def test_the_training_part_is_the_labelled_images_and_the_best_of_the_pool(scorer):
    module = mined(scorer, batch_size=64)
    module.setup()
    data = FashionMNIST(labelled=100)
    data.setup()
    patches = PhotoPatches(**PATCHES)
    patches.setup()
    labelled = data.train_set.labels >= 0
    pool = torch.cat([data.train_set.images[~labelled], in_grey(patches.train_set.images)])
    network = load_image_network(Path(scorer.checkpoint))[0].eval()
    with torch.no_grad():
        scores = torch.cat([network(part.float() / 255).softmax(1) for part in pool.split(64)])
    best = torch.cat([column.sort(descending=True, stable=True).indices[:20] for column in scores.T]).unique()
    images = torch.cat([data.train_set.images[labelled], pool[best]])
    batch = module.train_set.__getitems__([(n, 0) for n in range(len(module.train_set))])
    assert torch.equal(batch["image"], images)
    assert torch.equal(batch["label"], torch.cat([data.train_set.labels[labelled], torch.full((len(best),), -1)]))
    assert torch.equal(batch["index"], torch.arange(len(images)))
    kept = {"unlabelled": (int((best < 9900).sum()), 9900), "PhotoPatches": (int((best >= 9900).sum()), 180)}
    assert module.kept == kept
    assert "of 180 PhotoPatches" in module.describe()
    assert module.test_set.first == len(images)
    assert module.spec["keys"]["index"]["high"] == len(images)


def test_the_whole_pool_without_a_number(scorer):
    module = mined(scorer, per_class=None)
    module.setup()
    assert len(module.train_set) == 10_180


def test_copies_of_held_out_images_are_left_out(scorer, monkeypatch):
    load = FashionMNIST.load

    def with_copies(self):
        train, test = load(self)
        train.images[:3] = test.images[:3]
        train.images[3] = (test.images[3].float() * 0.8 + 20).round().to(torch.uint8)  # darker, of less contrast
        return train, test

    monkeypatch.setattr(FashionMNIST, "load", with_copies)
    module = mined(scorer, per_class=None, duplicate=0.999)
    module.setup()
    labels = module.data.train_set.labels
    unlabelled = (labels < 0).nonzero()[:, 0]
    kept = module.train_set.images[module.train_set.images[:, 0] == 1, 1]
    left_out = set(unlabelled.tolist()) - set(unlabelled[kept].tolist())
    copies = {number for number in range(4) if labels[number] < 0}
    assert len(copies) >= 3
    assert copies <= left_out
    assert len(left_out) < 100


def test_thumbnails_see_neither_brightness_nor_contrast():
    torch.manual_seed(0)
    image = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(thumbnails(image), thumbnails(0.5 * image + 0.1))
    assert (thumbnails(image) @ thumbnails(image).T - torch.eye(3)).abs().max() < 0.5
    assert torch.equal(thumbnails(torch.full((1, 3, 9, 9), 0.5)), torch.zeros(1, 256))


def test_it_is_mined_once(scorer, monkeypatch):
    first = mined(scorer)
    first.setup()
    monkeypatch.setattr(MinedImages, "search", lambda *_: pytest.fail("mined again"))
    second = mined(scorer)
    assert first.fingerprint() == second.fingerprint()
    monkeypatch.undo()
    other = mined(scorer, per_class=10)
    assert other.fingerprint() != first.fingerprint()


def test_parts_of_files_that_cannot_be_read_are_told(tmp_path):
    for part, name in ("train", "a"), ("train", "b"), ("val", "a"), ("val", "b"):
        (tmp_path / "photos" / part / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{number}.png")
    (tmp_path / "photos" / "train" / "a" / "1.png").write_bytes(b"no image")
    args = {"root": str(tmp_path / "photos"), "image_size": 32, "corrupt": "skip", "labelled": 4}
    module = MinedImages(Source("image_folder", args), "none", per_class=None, duplicate=None)
    module.setup()
    batch = module.train_set.__getitems__([(n, 0) for n in range(8)])
    assert len(batch["image"]) == 7
    assert [path for path, _ in batch["corrupt"]] == [str(tmp_path / "photos" / "train" / "a" / "1.png")]
    missing = (set(range(8)) - set(batch["index"].tolist())).pop()
    part, row = module.train_set.images[missing].tolist()
    assert module.train_set.parts[part].images[row].endswith(b"1.png")
    assert module.prepare(batch, augment=True)["image"].shape == (7, 3, 32, 32)


def test_joined_samples_come_in_the_order_that_was_asked():
    images = torch.tensor([0, 1, 2, 10, 11, 12], dtype=torch.uint8).view(2, 3, 1, 1, 1).expand(-1, -1, 1, 2, 2)
    parts = tuple(Samples(part, torch.zeros(3)) for part in images)
    joined = Joined(torch.tensor([[1, 2], [0, 0], [1, 0]]), torch.tensor([5, 6, 7]), first=100, parts=parts)
    batch = joined.__getitems__([(2, 7), (0, 8), (1, 9)])
    assert batch["image"][:, 0, 0, 0].tolist() == [10, 12, 0]
    assert batch["label"].tolist() == [7, 5, 6]
    assert batch["index"].tolist() == [102, 100, 101]
    assert batch["view"].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, "per_class=0 or duplicate=None is out of range"),
        ({"duplicate": 1.5}, "duplicate=1.5 is out of range"),
    ],
)
def test_bad_arguments(scorer, options, message):
    with pytest.raises(UserError, match=message):
        mined(scorer, **options)


def test_pools_that_do_not_fit_are_refused(scorer):
    module = MinedImages(Source("fashion_mnist"), scorer, [Source("photo_patches", {"image_size": 32})])
    with pytest.raises(UserError, match=r"The pool has images of \[3, 32, 32\], the labelled set of \[1, 28, 28\]"):
        module.setup()
    with pytest.raises(UserError, match="Molecules has 'graph', and images are mined here"):
        MinedImages(Source("molecules"), scorer).setup()
    with pytest.raises(UserError, match="'mesh_scene' gives no images with labels"):
        MinedImages(Source("mesh_scene"), scorer)


def test_luma():
    image = torch.tensor([[[[100]], [[200]], [[50]]]], dtype=torch.uint8)
    assert in_grey(image).tolist() == [[[[153]]]]  # 29.9 + 117.4 + 5.7
    assert torch.equal(in_grey(image[:, :1]), image[:, :1])
