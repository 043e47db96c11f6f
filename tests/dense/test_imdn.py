"""IMDN against its equations, written out, and what the method promises."""

import json
import math
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import l1_loss

from kdzoo.console import quieten
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.datamodules.sr_folder import SRFolder
from kdzoo.dense.imdn import IMDN
from kdzoo.dense.imdn_network import ContrastAttention, IMDNNetwork, PlainNetwork, bicubic
from kdzoo.dense.plain_sr import PlainSR
from kdzoo.dense.trained import read_export
from kdzoo.errors import UserError
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = SRFolder(scale=2, patch=24).spec
SMALL = {"features": 16, "blocks": 2}


def parameters(network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def built(method, spec=SPEC):
    method.build_for(spec)
    return method.eval()


@pytest.fixture
def batch():
    return next(iter(RandomLike(SPEC, samples=3, batch_size=3).train_dataloader()))


@pytest.mark.parametrize(("scale", "count"), [(2, 694_404), (3, 703_059), (4, 715_176)])
def test_the_full_model_has_the_published_number_of_parameters(scale, count):
    with torch.device("meta"):
        assert parameters(IMDNNetwork(scale)) == count


def test_the_plain_network_has_no_fewer_parameters():
    with torch.device("meta"):
        assert 1 <= parameters(PlainNetwork(2)) / parameters(IMDNNetwork(2)) < 1.03
        assert 1 <= parameters(PlainNetwork(2, 16, 7)) / parameters(IMDNNetwork(2, **SMALL)) < 1.03


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_output_is_larger_by_the_scale(scale):
    for network in IMDNNetwork(scale, **SMALL), PlainNetwork(scale, 8, 2), PlainNetwork(scale, layers=0):
        assert network(torch.rand(2, 3, 7, 10)).shape == (2, 3, 7 * scale, 10 * scale)


def test_contrast_attention_is_its_equation():
    attention = ContrastAttention(32)
    x = torch.randn(2, 32, 5, 6)
    w1, b1 = attention.squeeze.weight.detach()[:, :, 0, 0], attention.squeeze.bias.detach()
    w2, b2 = attention.excite.weight.detach()[:, :, 0, 0], attention.excite.bias.detach()
    expected = torch.zeros_like(x)
    for image in range(2):
        contrasts = []
        for channel in range(32):
            values = [float(value) for value in x[image, channel].flatten()]
            mean = sum(values) / 30
            contrasts.append(math.sqrt(sum((value - mean) ** 2 for value in values) / 30) + mean)
        hidden = [max(0.0, sum(float(w) * z for w, z in zip(w1[i], contrasts)) + float(b1[i])) for i in range(2)]
        for channel in range(32):
            logit = sum(float(w) * h for w, h in zip(w2[channel], hidden)) + float(b2[channel])
            expected[image, channel] = x[image, channel] / (1 + math.exp(-logit))
    torch.testing.assert_close(attention(x), expected)


def test_a_constant_channel_has_a_gradient():
    x = torch.full((1, 16, 4, 4), 0.3, requires_grad=True)
    ContrastAttention(16)(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_block_keeps_a_quarter_at_each_step():
    network = IMDNNetwork(2, **SMALL)
    block, x = network.blocks[0], torch.randn(1, 16, 6, 6)
    rest, kept = x, []
    for step in block.steps:
        y = step(rest)
        y = torch.where(y > 0, y, 0.05 * y)
        kept.append(y[:, :4])
        rest = y[:, 4:]
    kept.append(block.last(rest))
    torch.testing.assert_close(block(x), block.fuse(block.attention(torch.cat(kept, 1))) + x)


@pytest.mark.parametrize(
    "make", [lambda: IMDNNetwork(2, 15, 2), lambda: IMDNNetwork(2, 16, 0), lambda: PlainNetwork(2, 0)]
)
def test_networks_that_are_too_small_are_refused(make):
    with pytest.raises(UserError, match="features="):
        make()


def test_the_loss_is_l1(batch):
    for method in built(IMDN(**SMALL)), built(PlainSR(8, 2)):
        terms = method.losses(batch)
        assert terms.keys() == {"l1"}
        torch.testing.assert_close(terms["l1"], (method.student(batch["lr"]) - batch["hr"]).abs().mean())


def test_interpolation_is_pils():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(64, 192, (20, 30, 3), np.uint8)
    theirs = np.asarray(Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)).astype(int)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    ours = (255 * bicubic(image, 2).clamp(0, 1)).round()[0].permute(1, 2, 0).numpy().astype(int)
    assert abs(ours - theirs).max() <= 2  # PIL rounds to 8 bits after each axis
    assert abs(ours - theirs).mean() < 0.3


def test_the_learning_rate_is_halved_after_each_fifth(tmp_path):
    from lightning import Trainer

    rates = []

    class Watched(IMDN):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    trainer = Trainer(
        max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    quieten()
    trainer.fit(Watched(**SMALL), datamodule=RandomLike(SPEC, samples=4, batch_size=2))
    assert rates == pytest.approx([2e-4 * 0.5 ** (step // 2) for step in range(10)])


def test_data_without_a_scale_are_refused():
    with pytest.raises(UserError, match=r"IMDN takes data .* of 'image': give it data with a scale"):
        IMDN(**SMALL).build_for({"modality": "image", "classes": 3})


# ------------------------------------------------------------------------------------------- exports and what uses them


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A method, and its run's folder with an export."""
    method, run = built(IMDN(**SMALL)), tmp_path_factory.mktemp("run")
    files = method.export(run / "export", {"test/psnr_y": 30.0})
    assert files == ["README.md", "config.json", "model.onnx", "model.safetensors"]
    return method, run


def test_the_export_runs_without_kdzoo_and_comes_back(exported):
    method, run = exported
    assert json.loads((run / "export" / "config.json").read_text())["scores"] == {"test/psnr_y": 30.0}
    image = torch.rand(1, 3, 17, 21)  # another size than the one that was exported
    expected = method.student(image).detach()
    session = onnxruntime.InferenceSession(run / "export" / "model.onnx")
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"image": image.numpy()})[0]), expected)
    for folder in run, run / "export":
        torch.testing.assert_close(read_export(folder)[0](image), expected)


def test_the_readme_of_an_export_runs(exported, tmp_path, monkeypatch):
    from PIL import Image

    shutil.copytree(exported[1] / "export", tmp_path / "FOLDER")
    Image.new("RGB", (12, 9)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    lines = (tmp_path / "FOLDER" / "README.md").read_text().splitlines()
    exec("\n".join(line.removeprefix("    ") for line in lines if line.startswith("    ")), {})
    assert Image.open("photo_x2.png").size == (24, 18)


def test_x3_starts_from_x2(exported):
    first, run = exported
    second = built(IMDN(**SMALL, weights=str(run)), SRFolder(scale=3, patch=24).spec)
    weights = first.student.state_dict()
    for name, weight in second.student.state_dict().items():
        assert name.startswith("up_sampler.") or torch.equal(weight, weights[name])
    assert second.student.up_sampler[0].weight.shape[0] == 27
    with pytest.raises(UserError, match="of another architecture: 'blocks"):
        built(IMDN(features=16, blocks=3, weights=str(run)))


def test_another_network_can_teach(exported, batch):
    large, run = exported
    method = built(IMDN(**SMALL, teacher=Teacher(checkpoint=str(run)), output_weight=0.5))
    terms = method.losses(batch)
    expected = 0.5 * l1_loss(method.student(batch["lr"]), large.student(batch["lr"]))
    torch.testing.assert_close(terms["output"], expected)
    assert method.teacher_summary()["scores"] == {"test/psnr_y": 30.0}
    assert method.teacher_summary()["parameters"] == parameters(large.student)
    assert not any("teacher" in name for name in method.state_dict())
    with pytest.raises(UserError, match="was made for scale = 2"):
        built(IMDN(**SMALL, teacher=Teacher(checkpoint=str(run))), SRFolder(scale=3, patch=24).spec)


def test_a_recipe_can_teach_untrained():
    with untrained_teachers():
        method = built(IMDN(**SMALL, teacher="plain_sr_tiny"))
    assert method.teacher.networks[0].layers == 7


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b"no weights"), lambda f: f.unlink()])
def test_a_damaged_export_is_one_sentence(damage, exported, tmp_path):
    shutil.copytree(exported[1], tmp_path / "run")
    damage(tmp_path / "run" / "export" / "model.safetensors")
    with pytest.raises(UserError, match="run' holds no intact export"):
        read_export(tmp_path / "run")
