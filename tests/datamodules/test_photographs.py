import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kdzoo.datamodules.photographs import read_picture, write_png
from kdzoo.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 13, 3), np.uint8)
GREY, ALPHA = COLOUR[..., 0], COLOUR[..., 1]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write_deep_png(path, kind: int, channels: int):
    """A PNG of 16 bits, which PIL cannot write; kind 2: RGB, 4: grey and alpha, 6: RGB and alpha."""
    header = struct.pack(">IIBBBBB", 13, 9, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(13 * channels * 2) for _ in range(9))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(COLOUR, "RGB"), (GREY, "L"), (np.dstack([COLOUR, ALPHA]), "RGBA"), (np.dstack([GREY, ALPHA]), "LA")],
)
def test_grey_and_alpha_are_kept(pixels, mode, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    assert picture.pixels.shape == (9, 13, 1 if mode.startswith("L") else 3)
    assert (picture.alpha is not None) == mode.endswith("A")
    assert picture.rgb().shape == (9, 13, 3)
    write_png(tmp_path / "deep" / "out.png", picture)
    with Image.open(tmp_path / "deep" / "out.png") as again:
        assert again.mode == mode
        assert (np.asarray(again) == pixels).all()


def test_grey_of_16_bits_is_kept(tmp_path):
    levels = RNG.integers(0, 65536, (9, 13), np.uint16)
    Image.fromarray(levels).save(tmp_path / "in.png")
    picture = read_picture(tmp_path / "in.png")
    assert picture.pixels.dtype == np.uint16
    assert (picture.pixels[..., 0] == levels).all()
    assert (abs(picture.rgb()[..., 0].astype(float) - levels / 257) <= 0.5).all()
    write_png(tmp_path / "out.png", picture)
    with Image.open(tmp_path / "out.png") as again:
        assert (np.asarray(again) == levels).all()


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_more_channels_of_16_bits_are_refused(kind, channels, tmp_path):
    path = write_deep_png(tmp_path / "deep.png", kind, channels)
    with pytest.raises(UserError, match=r"deep.png has 16 bits in each of several channels, .* convert it to 8 bits.$"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["CMYK", "F", "YCbCr", "I"])
def test_other_kinds_of_pixels_are_refused(mode, tmp_path):
    Image.new(mode, (5, 5)).save(tmp_path / "odd.tif")
    with pytest.raises(UserError, match=rf"odd.tif has pixels of the kind {mode}: convert it to RGB or grey"):
        read_picture(tmp_path / "odd.tif")


def test_palettes_and_their_transparency(tmp_path):
    image = Image.fromarray(COLOUR).quantize(16)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=0)
    opaque, clear = (read_picture(tmp_path / f"{name}.png") for name in ("opaque", "clear"))
    assert opaque.pixels.shape == clear.pixels.shape == (9, 13, 3)
    assert opaque.alpha is None
    assert ((clear.alpha == 0) == (np.asarray(image) == 0)).all()


def test_a_colour_can_be_transparent(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "in.png", transparency=tuple(int(v) for v in COLOUR[2, 3]))
    assert read_picture(tmp_path / "in.png").alpha[2, 3] == 0


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.fromarray(COLOUR).save(tmp_path / "turned.jpg", exif=exif, icc_profile=b"profile")
    picture = read_picture(tmp_path / "turned.jpg")
    assert picture.pixels.shape == (13, 9, 3)
    assert picture.profile == b"profile"
    write_png(tmp_path / "out.png", picture)
    assert Image.open(tmp_path / "out.png").info["icc_profile"] == b"profile"


def test_several_pictures_in_a_file_are_refused(tmp_path):
    frames = [Image.fromarray(RNG.integers(0, 256, (9, 13), np.uint8)) for _ in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"moving.gif holds 3 pictures: save the one that you want"):
        read_picture(tmp_path / "moving.gif")


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_damaged_files_are_named(content, tmp_path):
    path = tmp_path / "broken.png"
    Image.fromarray(COLOUR).save(path)
    path.write_bytes(path.read_bytes()[:150] if content is None else content)
    with pytest.raises(UserError, match=r"broken.png cannot be decoded .*: repair or remove it"):
        read_picture(path)
    with pytest.raises(UserError, match=r"missing.png cannot be decoded"):
        read_picture(tmp_path / "missing.png")
