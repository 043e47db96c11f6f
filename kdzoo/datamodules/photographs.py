"""Pictures as people have them: read without loss, or refused in one sentence that names the file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from kdzoo.errors import UserError

GREY, COLOUR, PALETTE, DEEP = ("1", "L", "LA"), ("RGB", "RGBA"), ("P", "PA"), ("I;16", "I;16B", "I;16L", "I")


class Picture(NamedTuple):
    """A decoded picture, upright.

    Attributes:
        pixels: uint8 or uint16 [H, W, C], C = 1 (grey) or 3.
        alpha: uint8 [H, W], None if it is opaque.
        profile: its colour profile (ICC), None for sRGB.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None

    def rgb(self) -> np.ndarray:
        """Three channels of 8 bits, without alpha: uint8 [H, W, 3]."""
        levels = self.pixels
        if levels.dtype == np.uint16:
            levels = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255
        return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels


def read_picture(path: Path) -> Picture:
    """Read a picture: 8 bits in grey, colour or a palette, with or without alpha, or 16 bits in grey.

    Raises:
        UserError: The file is missing or damaged, or is of a kind that cannot be read without loss.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode in DEEP and (image.mode != "I" or image.format == "PNG")  # PNGs of "I" have 16 bits
            if problem := _problem(image, deep):
                raise UserError(f"{path} {problem}.")
            profile = image.info.get("icc_profile")
            upright = ImageOps.exif_transpose(image)
            if deep:
                return Picture(np.asarray(upright).astype(np.uint16)[..., None], None, profile)
            clear = upright.has_transparency_data
            kind = "L" if upright.mode in GREY else "RGB"
            levels = np.asarray(upright.convert({"L": "LA", "RGB": "RGBA"}[kind] if clear else kind))
            levels = levels.reshape(*levels.shape[:2], -1)
            return Picture(levels[..., : len(kind)], levels[..., -1] if clear else None, profile)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever a decoder stumbles over, it is the file's fault
        raise UserError(f"{path} cannot be decoded ({type(error).__name__}: {error}): repair or remove it.") from error


def _problem(image: Image.Image, deep: bool) -> str | None:
    if image.mode not in (*GREY, *COLOUR, *PALETTE) and not deep:
        return f"has pixels of the kind {image.mode}: convert it to RGB or grey"
    if not deep and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return "has 16 bits in each of several channels, of which 8 would be lost: convert it to 8 bits"
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a phone's photograph with a second view
        return f"holds {image.n_frames} pictures: save the one that you want"  # type: ignore[attr-defined]
    return None


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture as PNG; grey, alpha, 16 bits and the profile are kept."""
    pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
    image = Image.fromarray(pixels)
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG", compress_level=3, icc_profile=picture.profile)
