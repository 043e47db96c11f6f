"""The folder of a radiance field: what is read is what was written, and the mesh is the surface."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from kdzoo.datamodules.cameras import Camera, SpherePrior
from kdzoo.errors import UserError
from kdzoo.export.radiance import bytes_of, export_radiance, mesh_of, read_radiance, turntable
from kdzoo.nerf.radiance import Radiance

SPEC = {"modality": "radiance_field", "bound": 1.0}


@pytest.fixture
def ball():
    """A ball of radius 0.5, of dense tensors."""
    radiance = Radiance("tensors", {"resolution": 24}, 1.0, steps=48, resolution=8)
    axis = torch.linspace(-1, 1, 24)
    distance = torch.cartesian_prod(axis, axis, axis).norm(dim=1)
    radiance.field.volume.data.zero_()
    radiance.field.volume.data[:, 0] = (2.3026 + 12 * (0.5 - distance)).clamp(-2, 7)  # density 10 on the surface
    return radiance


def test_the_round_trip(ball, tmp_path):
    camera = Camera.with_angle(12, 12, 0.7)
    files = export_radiance(
        ball, SPEC, tmp_path / "x", {"test/psnr": 30.0}, SpherePrior((3.0, 3.0)), camera, 4, 24, 10.0
    )
    assert {"field.safetensors", "config.json", "README.md", "turntable.gif", "strip.png", "depth", "mesh.ply"} <= set(
        files
    )
    again, config = read_radiance(tmp_path / "x", Radiance)
    assert config["scores"] == {"test/psnr": 30.0}
    origin, direction = torch.tensor([[0.0, 0, 3]]).expand(9, 3), torch.tensor([[0.0, 0, -1]]).expand(9, 3)
    found, expected = (each.look(origin, direction, torch.ones(9, 3)).rgb for each in (again, ball))
    assert torch.equal(found, expected)
    with Image.open(tmp_path / "x" / "turntable.gif") as gif:
        assert gif.size == (12, 12)
    (tmp_path / "x" / "config.json").write_text(json.dumps({"radiance": {}}))
    with pytest.raises(UserError, match="no intact export of a radiance field"):
        read_radiance(tmp_path / "x", Radiance)


def test_the_video_is_ffmpegs_where_it_is_installed(ball, tmp_path, monkeypatch, capsys):
    """A stand-in for the program keeps what it is given: every frame whole, in the order of the turn."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" > "$0.said"\nfor last; do :; done\ncat > "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    where = SpherePrior((3.0, 3.0)), Camera.with_angle(11, 9, 0.7), 3
    assert "turntable.mp4" in export_radiance(ball, SPEC, tmp_path / "x", None, *where, 0, 10.0)
    frames = np.frombuffer((tmp_path / "x" / "turntable.mp4").read_bytes(), np.uint8).reshape(3, 9, 11, 3)
    expected = [bytes_of(view.rgb) for view in turntable(ball, *where)]
    np.testing.assert_array_equal(frames, expected)
    assert "-s 11x9 -r 16.667" in (tmp_path / "bin" / "ffmpeg.said").read_text()
    program.write_text('#!/bin/sh\ncat > /dev/null\necho "no such codec" >&2\nexit 1\n')
    files = export_radiance(ball, SPEC, tmp_path / "y", None, *where, 0, 10.0)
    assert "turntable.gif" in files
    assert "turntable.mp4" not in files
    assert "none: ffmpeg failed: no such codec" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_ffmpeg_reads_its_video(ball, tmp_path):
    where = SpherePrior((3.0, 3.0)), Camera.with_angle(31, 17, 0.7), 4
    export_radiance(ball, SPEC, tmp_path / "x", None, *where, 0, 10.0)
    command = ["ffmpeg", "-loglevel", "error", "-i", str(tmp_path / "x" / "turntable.mp4")]
    raw = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(4, 18, 32, 3)[:, :17, :31].astype(int)
    for frame, view in zip(frames, turntable(ball, *where)):
        assert abs(frame - bytes_of(view.rgb)).mean() < 6


def test_the_mesh_is_the_surface(ball, tmp_path):
    pytest.importorskip("skimage")
    positions, faces, colours = mesh_of(ball, 32, 10.0)
    np.testing.assert_allclose(np.linalg.norm(positions, axis=1), 0.5, atol=0.03)
    assert faces.max() == len(positions) - 1
    assert abs(colours.astype(int) - 127).max() <= 1  # the sigmoid of nothing
    ball.field.volume.data[:, 0] = -2
    with pytest.raises(UserError, match=r"no surface of density 10: its densities reach 0\.135"):
        mesh_of(ball, 16, 10.0)
    assert "mesh.ply" not in export_radiance(ball, SPEC, tmp_path / "y", None, None, None, 0, 16, 10.0)
