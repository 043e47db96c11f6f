"""Photographs whose cameras COLMAP has found: `sparse/0/{cameras,images,points3D}` as text or binary."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kdzoo.datamodules.blender_scene import split
from kdzoo.datamodules.cameras import Camera, around, in_front, mean_up
from kdzoo.datamodules.posed_images import Layout, PosedImages, Views
from kdzoo.errors import UserError

MODELS = ["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"]  # by number
PARAMETERS = [3, 4, 4, 5, 8]
INSIDE = 0.95  # share of COLMAP's points that must lie in the box


class ColmapScene(PosedImages):
    """A folder with COLMAP's sparse model; every eighth view, by name and from the first on, is for the test.

    Args:
        root: The scene's folder.
        images: The folder of the images in it.
        sparse: The folder of the model in it.
        views: Where cameras are: `around` an object, or `forward` to a scene in front of them.
        bound: Half the side of the scene's box.
        scale: What positions are multiplied by, after the points' median has become the origin; None: so that the
            points fit.
        batch_size, batches, validation, width, num_workers: See `PosedImages`.
    """

    def __init__(
        self,
        root: str,
        images: str = "images",
        sparse: str = "sparse/0",
        views: Literal["around", "forward"] = "around",
        bound: float = 1.0,
        scale: float | None = None,
        batch_size: int = 4096,
        batches: int = 1000,
        validation: int = 4,
        width: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            bound, 1.0 if scale is None else scale, batch_size, batches, validation, width, "random", num_workers
        )
        self.fits = scale is None
        self.root, self.images, self.sparse, self.views = Path(root), images, Path(root, sparse), views

    def layout(self) -> Layout:
        """Read the model."""
        cameras = self._part("cameras", text_cameras, binary_cameras)
        frames = sorted(self._part("images", text_images, binary_images), key=lambda frame: frame["name"])
        points = self._part("points3D", text_points, binary_points)
        if not len(points) or not frames:
            raise UserError(f"{self.sparse} has no points or no images: let COLMAP make the model again.")
        centre = np.median(points, 0)
        reach = float(np.quantile(np.abs(points - centre).max(1), INSIDE))
        if not 0 < reach < np.inf:
            raise UserError(f"The points of {self.sparse} have no extent: let COLMAP make the model again.")
        if self.fits:
            self.scale = 0.95 * self.bound / reach
        elif reach * self.scale > self.bound:
            raise UserError(
                f"The scene reaches out of the box: {1 - INSIDE:.0%} of the points are beyond {reach * self.scale:.3g} "
                f"and data.bound is {self.bound}: data.bound {1.05 * reach * self.scale:.3g} or data.scale "
                f"{0.95 * self.bound / reach:.3g} would fit."
            )
        poses = torch.stack([pose_of(frame, centre) for frame in frames])
        paths = [self.root / self.images / frame["name"] for frame in frames]
        if missing := {frame["camera"] for frame in frames} - cameras.keys():
            raise UserError(
                f"{self.sparse} has images of camera {min(missing)} and no such camera: its files are of two models."
            )
        own = [cameras[frame["camera"]] for frame in frames]
        views = Views(paths, poses, own if len(set(own)) > 1 else own[:1])
        train, test = split(views)
        scaled = train.poses.clone()
        scaled[:, :3, 3] *= self.scale
        prior = in_front(scaled) if self.views == "forward" else around(scaled, None, mean_up(scaled))
        return Layout(train, None, test, prior)

    def _part(self, name: str, text: Callable[[list[str]], Any], binary: Callable[[bytes], Any]) -> Any:
        file = next((f for f in (self.sparse / f"{name}.bin", self.sparse / f"{name}.txt") if f.is_file()), None)
        if file is None:
            raise UserError(f"There is no {name}.bin or {name}.txt in {self.sparse}: give data.sparse, COLMAP's model.")
        try:
            if file.suffix == ".bin":
                return binary(file.read_bytes())
            lines = file.read_text(encoding="utf-8").splitlines()
            return text([line for line in lines if not line.startswith("#")])
        except UserError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0][:120]
            raise UserError(
                f"{file} is no part of COLMAP's model ({type(error).__name__}: {reason}): make it again."
            ) from error


def pose_of(frame: dict[str, Any], centre: np.ndarray) -> torch.Tensor:
    """Camera to world with OpenGL's axes, float32 [4, 4], from world to camera with y down and the view along z."""
    w, x, y, z = np.asarray(frame["rotation"]) / np.linalg.norm(frame["rotation"])
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = rotation.T * [1, -1, -1]
    pose[:3, 3] = -rotation.T @ frame["translation"] - centre
    return torch.from_numpy(pose).float()


def make_camera(model: str, width: int, height: int, values: list[float]) -> Camera:
    """A camera of one of COLMAP's models.

    Raises:
        UserError: It bends straight lines.
    """
    if model not in MODELS or any(abs(value) > 1e-6 for value in values[4 if model in ("PINHOLE", "OPENCV") else 3 :]):
        raise UserError(
            f"A camera of COLMAP's model is a {model} with lens distortion: undistort the images (colmap "
            "image_undistorter) and use the model that this writes."
        )
    if model in ("PINHOLE", "OPENCV"):
        return Camera(width, height, *values[:4])
    focal, cx, cy = values[:3]
    return Camera(width, height, focal, focal, cx, cy)


def text_cameras(lines: list[str]) -> dict[int, Camera]:
    """Cameras by number, of `cameras.txt`."""
    rows = [line.split() for line in lines if line.strip()]
    return {int(r[0]): make_camera(r[1], int(r[2]), int(r[3]), [float(v) for v in r[4:]]) for r in rows}


def text_images(lines: list[str]) -> list[dict[str, Any]]:
    """Frames of `images.txt`, where every other line, which may be empty, lists points."""
    rows = [line.split(maxsplit=9) for line in lines[::2] if line.strip()]
    return [
        {
            "rotation": [float(v) for v in r[1:5]],
            "translation": [float(v) for v in r[5:8]],
            "camera": int(r[8]),
            "name": r[9],
        }
        for r in rows
    ]


def text_points(lines: list[str]) -> np.ndarray:
    """Positions [N, 3] of `points3D.txt`."""
    return np.array([[float(v) for v in line.split()[1:4]] for line in lines if line.strip()]).reshape(-1, 3)


class Reader:
    """Reads packed little-endian numbers one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def __call__(self, form: str) -> tuple[Any, ...]:
        """The next values."""
        found = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        """The next text, which ends with a zero."""
        end = self.content.index(b"\0", self.place)
        found, self.place = self.content[self.place : end].decode(), end + 1
        return found

    def skip(self, size: int) -> None:
        """Leave out bytes; there must be so many."""
        self.place += size
        if self.place > len(self.content):
            raise ValueError("it is cut off")


def binary_cameras(content: bytes) -> dict[int, Camera]:
    """Cameras by number, of `cameras.bin`."""
    read = Reader(content)
    found = {}
    for _ in range(read("Q")[0]):
        number, model, width, height = read("iiQQ")
        if not 0 <= model < len(MODELS):
            make_camera("model with number " + str(model), width, height, [])
        found[number] = make_camera(MODELS[model], width, height, list(read(f"{PARAMETERS[model]}d")))
    return found


def binary_images(content: bytes) -> list[dict[str, Any]]:
    """Frames of `images.bin`."""
    read = Reader(content)
    found = []
    for _ in range(read("Q")[0]):
        values = read("I7dI")
        frame = {"rotation": list(values[1:5]), "translation": list(values[5:8]), "camera": values[8]}
        found.append({**frame, "name": read.text()})
        read.skip(24 * read("Q")[0])
    return found


def binary_points(content: bytes) -> np.ndarray:
    """Positions [N, 3] of `points3D.bin`."""
    read = Reader(content)
    found = []
    for _ in range(read("Q")[0]):
        found.append(read("Q3d3Bd")[1:4])
        read.skip(8 * read("Q")[0])
    return np.array(found).reshape(-1, 3)
