"""The folder of a synthetic set: written whole, read with care."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdzoo.dataset.preprocessing import ZCA
from kdzoo.errors import UserError
from kdzoo.export.synthetic_set import export_synthetic_set, grid, read_synthetic_set, to_pixels

IMAGES = torch.arange(6 * 3 * 4 * 5).view(6, 3, 4, 5) / 100
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
FACTS = {
    "method": "DM",
    "preprocessing": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]},
    "spec": {"classes": 2, "channels": 3, "image_size": [4, 5], "class_names": ["cat", "dog"]},
}


@pytest.fixture
def folder(tmp_path):
    export_synthetic_set(IMAGES, LABELS, IMAGES.clamp(0, 1), {}, FACTS, tmp_path / "set")
    return tmp_path / "set"


def test_what_is_read_is_what_was_written(folder):
    tensors, facts = read_synthetic_set(folder)
    assert torch.equal(tensors["images"], IMAGES)
    assert torch.equal(tensors["labels"], LABELS)
    assert facts["preprocessing"] == FACTS["preprocessing"]
    assert "6 synthetic images of 2 classes by DM" in (folder / "README.md").read_text()
    assert "int64" in (folder / "README.md").read_text()


def test_soft_labels(tmp_path):
    soft = torch.rand(6, 2).softmax(1)
    export_synthetic_set(IMAGES, soft, IMAGES, {}, FACTS, tmp_path / "set")
    tensors, _ = read_synthetic_set(tmp_path / "set")
    assert torch.equal(tensors["labels"], soft)
    assert "probabilities" in (tmp_path / "set" / "README.md").read_text()


def test_pixels_come_back(folder):
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), 0.5
    torch.testing.assert_close(to_pixels(*read_synthetic_set(folder)), IMAGES * std + mean)


@pytest.mark.parametrize("count", [20, 100])
def test_whitened_images_come_back(count, tmp_path):
    """As pixels by `to_pixels`; and the README's lines whiten as the method did. Fewer images than values, and more."""
    spec = {**FACTS["spec"], **FACTS["preprocessing"]}
    zca, real = ZCA(spec), torch.rand(count, 3, 4, 5)
    zca.fit(lambda: [real], count)
    pixels = torch.rand(6, 3, 4, 5)
    export_synthetic_set(zca(pixels), LABELS, pixels, zca.tensors(), FACTS, tmp_path / "set")
    torch.testing.assert_close(to_pixels(*read_synthetic_set(tmp_path / "set")), pixels, atol=1e-5, rtol=1e-4)
    lines = (tmp_path / "set" / "README.md").read_text().splitlines()
    code = "\n".join(line.strip() for line in lines if line.startswith("    ") and '"FOLDER' not in line)
    names = {"z": load_file(tmp_path / "set" / "images.safetensors"), "pixels": real.flatten(1)}
    exec(code.replace("from torch.utils.data import TensorDataset", ""), names)
    torch.testing.assert_close(names["whitened"], zca(real).flatten(1), atol=1e-4, rtol=1e-3)


def test_the_grid_has_a_class_per_row():
    page = grid(IMAGES, 3)
    assert page.shape == (2 * 5 - 1, 3 * 6 - 1, 3)
    expected = (255 * IMAGES[4].clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert (page[5:9, 6:11] == expected).all()
    assert (page[4] == 255).all()
    assert (page[:, 5] == 255).all()


def test_single_images_make_no_tower():
    assert grid(torch.zeros(10, 1, 8, 8), 1).shape == (2 * 9 - 1, 5 * 9 - 1, 3)


def altered(folder, **tensors):
    save_file({**load_file(folder / "images.safetensors"), **tensors}, folder / "images.safetensors")


def rewritten(folder, **facts):
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "images.safetensors").unlink(),
        lambda folder: (folder / "images.safetensors").write_bytes(b"nothing"),
        lambda folder: (folder / "dataset.json").write_text("{"),
        lambda folder: (folder / "dataset.json").write_text("[]"),
        lambda folder: rewritten(folder, format="another 1"),
        lambda folder: rewritten(folder, spec={"classes": 2}),
        lambda folder: rewritten(folder, preprocessing={"mean": [0.0], "std": [1.0]}),
        lambda folder: altered(folder, images=torch.zeros(6, 3, 4, 4)),
        lambda folder: altered(folder, images=torch.full((6, 3, 4, 5), torch.nan)),
        lambda folder: altered(folder, labels=torch.tensor([0, 1, 2, 3, 4, 5])),
        lambda folder: altered(folder, labels=torch.zeros(6, 3)),
        lambda folder: altered(folder, zca_basis=torch.eye(3)),
    ],
)
def test_damaged_sets_are_refused(damage, folder):
    damage(folder)
    with pytest.raises(UserError, match=r"set holds no intact synthetic set \(.*\): export it again"):
        read_synthetic_set(folder)
