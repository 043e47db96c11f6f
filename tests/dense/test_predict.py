"""Pictures of any size and kind through `predict`, as the command line runs it."""

import json

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from kdzoo.cli import main
from kdzoo.console import quieten
from kdzoo.datamodules.sr_folder import SRFolder
from kdzoo.dense.imdn import IMDN
from kdzoo.dense.plain_sr import PlainSR


def upscale(path, method=None, **options):
    quieten()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    method = method or IMDN(16, 2)
    data = SRFolder(patch=48, image=str(path), **options)
    return method, trainer.predict(method, datamodule=data)


@pytest.fixture(autouse=True)
def nothing_is_held(monkeypatch):
    """Whatever the other tests of this process left in its memory."""
    monkeypatch.setattr("kdzoo.dense.super_resolver.own_memory", lambda: 0)


def test_a_picture_in_tiles_is_the_picture_in_one_piece(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    monkeypatch.setattr("kdzoo.dense.tiling.tile_side", lambda network, memory: 32)
    method, (found,) = upscale(tmp_path / "photo.png")
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    whole = method.student(image).detach()
    whole = (255 * whole.clamp(0, 1)).round()[0].permute(1, 2, 0).numpy().astype(int)
    assert found["picture"].pixels.shape == (140, 180, 3)
    assert abs(found["picture"].pixels.astype(int) - whole).max() <= 1  # a level where rounding is a tie
    assert found["path"].endswith("photo.png")


@pytest.mark.parametrize("tiling", ["exact", "published"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"])
def test_every_kind_of_picture_keeps_its_kind(mode, tiling, tmp_path):
    """Interpolation instead of a network, so that the result is known."""
    levels = np.linspace(0, 255, 12 * 14).reshape(12, 14).astype(np.uint8)
    image = Image.fromarray(levels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(levels).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(levels[::-1]))
    image.save(tmp_path / "in.png")
    _, (found,) = upscale(tmp_path / "in.png", PlainSR(layers=0), tiling=tiling)
    picture = found["picture"]
    assert picture.pixels.shape == (24, 28, 1 if mode in ("L", "LA", "1", "I;16") else 3)
    assert picture.pixels.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    assert (picture.alpha is not None) == mode.endswith("A")
    if mode in ("L", "LA", "RGB", "RGBA", "I;16"):
        scale = 257 if mode == "I;16" else 1
        expected = np.asarray(Image.fromarray(levels).resize((28, 24), Image.Resampling.BICUBIC)).astype(float)
        inside = slice(8, 16), slice(8, 20)
        assert abs(picture.pixels[..., 0] / scale - expected)[inside].max() <= 1.5


def test_the_command_line(tmp_path, monkeypatch, capsys):
    """Fit, then upscale one's own pictures with the checkpoint, then one that is damaged."""
    monkeypatch.chdir(tmp_path)
    small = ["--trainer.max_steps", "2", "--data.patches", "2", "--show", "nothing", "--trainer.accelerator", "cpu"]
    assert main(["fit", "--config", "imdn_tiny", "--run_dir", "run", *small]) in (0, None)
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics.keys() == {"test/psnr_y", "test/ssim_y", "test/psnr_y_bicubic"}
    (tmp_path / "mine").mkdir()
    Image.new("RGBA", (31, 22), "red").save(tmp_path / "mine" / "a.png")
    Image.new("L", (5, 4), 90).save(tmp_path / "mine" / "b.jpg")
    predict = ["predict", "--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "out", "--data.image"]
    capsys.readouterr()
    assert main([*predict, "mine", "--data.memory", "1"]) in (0, None)
    assert "out/pictures/a_x2.png   31 x 22 -> 62 x 44" in capsys.readouterr().out
    for name, mode, size in ("a_x2.png", "RGBA", (62, 44)), ("b_x2.png", "L", (10, 8)):
        with Image.open(tmp_path / "out" / "pictures" / name) as image:
            assert (image.mode, image.size) == (mode, size)
    assert not (tmp_path / "out" / "predictions.csv").exists()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        main([*predict, "broken.png"])
    assert "kdzoo: broken.png cannot be decoded" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*predict, "mine", "--data.memory", "0.001"])
    assert "too little for one tile: give data.memory" in capsys.readouterr().err


def test_interpolation_is_an_arm_without_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model.init_args.layers", "0", "--trainer.max_steps", "0", "--show", "nothing", "--run_dir", "run"]
    assert main(["fit", "--config", "plain_sr_tiny", *arguments]) in (0, None)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["test/psnr_y"] == pytest.approx(metrics["test/psnr_y_bicubic"])
    assert result["trainable_params"] == 0
    assert (tmp_path / "run" / "report.html").is_file()
