"""Write the embedded photographs from the wheel of scikit-image, whose sample data they are.

Run as `python -m kdzoo.assets.build_photos scikit_image-0.26.0-....whl` (`pip download scikit-image --no-deps`).
Only photographs that are in the public domain or CC0. Those of the test stay lossless; the others become JPEG of
quality 95 without colour subsampling, large ones shrunk by two. NOTICE says whose they are.
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

from PIL import Image

from kdzoo.datamodules.sr_folder import EMBEDDED

TEST = ("chelsea.png", "coffee.png")
TRAIN = ("astronaut.png", "brick.png", "camera.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "rocket.jpg")
HALVED = ("hubble_deep_field.jpg",)


def main() -> None:
    """Build, and print the sizes in bytes and the SHA-256 over all files that NOTICE and the test declare."""
    parser = argparse.ArgumentParser(description="Write the embedded photographs.")
    parser.add_argument("wheel", type=Path)
    target, digest = Path(__file__).parents[1] / EMBEDDED, hashlib.sha256()
    with zipfile.ZipFile(parser.parse_args().wheel) as wheel:
        for part, names in ("test", TEST), ("train", TRAIN):
            (target / part).mkdir(parents=True, exist_ok=True)
            for name in names:
                with Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}"))) as image:
                    shown = image.reduce(2) if name in HALVED else image
                    path = target / part / name
                    if part == "test":
                        shown.save(path, optimize=True)
                    else:
                        path = path.with_suffix(".jpg")
                        shown.save(path, quality=95, subsampling=0, optimize=True, exif=b"")
                digest.update(path.read_bytes())
                print(path.stat().st_size, path)
    print(digest.hexdigest())


if __name__ == "__main__":
    main()
