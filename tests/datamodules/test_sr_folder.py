import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.datamodules.sr_folder import SRFolder, read_pair
from kdzoo.errors import UserError

SHA256 = "317fdb54dde52e85a9ce21f801e349a7a6c63fdf23c456e2716ff282d5c57c65"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in ("train", 4), ("test", 2):
        (tmp_path / part).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (41, 53, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    return tmp_path


def folder(root, **more):
    options = {"train": "train", "test": "test", "scale": 2, "patch": 16, "patches": 3, "batch_size": 4} | more
    return SRFolder(source="path", root=str(root), **options)


def batches(loader, data, augment=False):
    return [data.prepare(batch, augment) for batch in loader]


def test_the_embedded_photographs_are_the_declared_ones():
    data = SRFolder()
    train, test = data.folders()
    files = [*sorted(test.iterdir()), *sorted(train.iterdir())]
    assert hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() == SHA256
    assert sum(file.stat().st_size for file in files) < 1.6e6
    notice = (ROOT / "NOTICE").read_text()
    assert SHA256 in notice
    assert all(file.stem in notice for file in files)


def test_embedded_parts():
    data = SRFolder(patch=48, patches=100)
    data.setup()
    assert [path.stem for path in data.test_set.paths] == ["chelsea", "coffee"]
    assert len(data.train_set) == 700
    assert data.describe() == "7 photographs, 700 patches an epoch"
    batch = next(iter(data.test_dataloader()))
    assert batch["hr"].shape == (1, 3, 300, 450)  # 451 wide: what the scale does not divide is left out
    assert batch["lr"].shape == (1, 3, 150, 225)


def test_a_batch_is_what_the_spec_says(root):
    data = folder(root)
    (first, *_) = batches(data.train_dataloader(), data, augment=True)
    spec = data.spec
    assert (spec["modality"], spec["scale"]) == ("super_resolution", 2)
    for key, entry in spec["keys"].items():
        assert list(first[key].shape) == [4, *entry["shape"]], key
        assert str(first[key].dtype) == f"torch.{entry['dtype']}"
        assert first[key].min() >= entry["low"]
        assert first[key].max() <= entry["high"]


def test_low_resolution_patches_lie_where_the_high_ones_do(root):
    """Every patch, turned and mirrored or not, is found in its photograph at both scales."""
    data = folder(root, flip=False)
    data.setup()
    for batch in batches(data.train_dataloader(), data):
        for lr, hr, index in zip(batch["lr"], batch["hr"], batch["index"].tolist()):
            low, high = (torch.tensor(side).permute(2, 0, 1) / 255 for side in data.train_set.pair(index // 3))
            windows = low.unfold(1, 8, 1).unfold(2, 8, 1)  # [3, tops, lefts, 8, 8]
            ((top, left),) = (windows == lr[:, None, None]).all(dim=(0, 3, 4)).nonzero().tolist()
            assert torch.equal(high[:, 2 * top : 2 * top + 16, 2 * left : 2 * left + 16], hr)


def test_patches_are_a_function_of_index_and_view(root):
    data = folder(root)
    data.setup()
    alone = [data.train_set.__getitems__([(row, view)]) for row, view in ((5, 2), (1, 0), (5, 3))]
    together = data.train_set.__getitems__([(5, 2), (1, 0), (5, 3)])
    for key in "lr", "hr", "index", "view":
        assert torch.equal(torch.cat([batch[key] for batch in alone]), together[key])
    assert not torch.equal(together["hr"][0], together["hr"][2])


def test_all_eight_symmetries_come_up_alike_in_both_resolutions(root):
    data = folder(root, patch=40, patches=200)
    data.setup()
    draws = [(0.0, 0.0, turns / 4, mirror) for turns in range(4) for mirror in (0.0, 0.9)]
    seen = set()
    for draw in draws:
        small, large = data.train_set.patches(0, draw)
        seen.add(large.tobytes())
        shrunk = large.reshape(20, 2, 20, 2, 3).mean((1, 3))
        assert np.corrcoef(shrunk.ravel(), small.astype(float).ravel())[0, 1] > 0.8
    assert len(seen) == 8


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_low_resolution_is_bicubic_with_antialiasing(root, scale):
    path = root / "train" / "0.png"
    low, high = read_pair(path, scale)
    assert high.shape == (41 // scale * scale, 53 // scale * scale, 3)
    kernel = {"mode": "bicubic", "antialias": True}
    image = torch.from_numpy(high).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(image, size=low.shape[:2], **kernel).clamp(0, 255).round()
    difference = abs(low.astype(int) - expected[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 2  # PIL rounds to 8 bits after each axis
    assert difference.mean() < 0.3


def test_held_out_photographs_are_no_training_patches(root):
    data = folder(root, validation=1)
    data.setup()
    assert (len(data.train_set), len(data.validation_set), len(data.test_set)) == (9, 1, 2)
    assert not {*data.validation_set.paths} & {*data.train_set.paths}
    index = [int(batch["index"]) for part in (data.val_dataloader(), data.test_dataloader()) for batch in part]
    assert index == [9, 10, 11]
    with pytest.raises(UserError, match="validation=4 is more than the 3"):
        folder(root, validation=4).setup()


def test_memory_changes_nothing(root):
    kept, read = folder(root), folder(root, in_memory=False)
    for one, other in zip(kept.train_dataloader(), read.train_dataloader()):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert len(kept.train_set.kept) == 4
    assert not read.train_set.kept
    assert kept.fingerprint() == read.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 15}, "patch=15 must be a multiple of scale=2"),
        ({"scale": 0}, "must be a multiple of scale=0"),
        ({"patches": 0}, "patches=0"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"memory": 0.0}, "memory=0.0 must be positive"),
    ],
)
def test_bad_arguments(root, options, message):
    with pytest.raises(UserError, match=message):
        folder(root, **options)


def test_bad_folders(root):
    with pytest.raises(UserError, match="needs root"):
        SRFolder(source="path")
    with pytest.raises(UserError, match=r"There is no folder .*DIV2K_train_HR"):
        SRFolder(source="path", root=str(root)).setup()
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images"):
        folder(root, test="empty").setup()
    with pytest.raises(UserError, match=r"0.png is 52 x 40 pixels, smaller than a patch of 42"):
        folder(root, patch=42).train_dataloader()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_corrupt_photograph_is_named(root, in_memory):
    (root / "train" / "2.png").write_bytes(b"no picture")
    data = folder(root, in_memory=in_memory)
    with pytest.raises(UserError, match=r"2.png cannot be decoded .*: repair or remove it"):
        batches(data.train_dataloader(), data, augment=True)


def test_what_is_to_be_upscaled(root):
    Image.new("L", (9, 7)).save(root / "test" / "1.jpg")
    data = folder(root, image=str(root / "test"), memory=1.5)
    found = batches(data.predict_dataloader(), data)
    assert [batch["name"] for batch in found] == ["0", "1.jpg", "1.png"]
    assert [tuple(batch["lr"].shape) for batch in found] == [(1, 3, 41, 53), (1, 3, 7, 9), (1, 3, 41, 53)]
    assert found[0]["memory"] == 1.5
    (single,) = batches(folder(root, image=str(root / "test" / "0.png")).predict_dataloader(), data)
    assert torch.equal(single["lr"], found[0]["lr"])
    for image, message in (None, "give --data.image"), ("nowhere.png", "no picture or folder at 'nowhere.png'"):
        with pytest.raises(UserError, match=message):
            folder(root, image=image).predict_dataloader()
    (root / "test" / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0.png cannot be decoded"):
        batches(data.predict_dataloader(), data)
