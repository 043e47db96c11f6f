"""Scenes as Blender exports them for NeRF: `transforms_{train,val,test}.json` and RGBA images beside them.

`transforms.json` alone, with focal lengths (as instant-ngp and nerfstudio write it), is read too: every eighth view is
then a test view.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from kdzoo.datamodules.cameras import Camera, around
from kdzoo.datamodules.posed_images import Layout, PosedImages, Views
from kdzoo.errors import UserError

EVERY = 8  # of views without parts, one in so many is a test view, the first among them
DISTORTIONS = ("k1", "k2", "k3", "k4", "p1", "p2")


class BlenderScene(PosedImages):
    """A folder in Blender's layout, such as a scene of NeRF-Synthetic.

    Args:
        root: The scene's folder.
        bound, scale, batch_size, batches, validation, width, background, num_workers: See `PosedImages`.
    """

    def __init__(
        self,
        root: str,
        bound: float = 1.0,
        scale: float = 0.8,
        batch_size: int = 4096,
        batches: int = 1000,
        validation: int = 4,
        width: int | None = None,
        background: Literal["random", "white"] = "random",
        num_workers: int = 0,
    ) -> None:
        super().__init__(bound, scale, batch_size, batches, validation, width, background, num_workers)
        self.root = Path(root)

    def folder(self) -> Path:
        """Where the files are."""
        return self.root

    def layout(self) -> Layout:
        """Read the files of cameras."""
        folder = self.folder()
        if (folder / "transforms_train.json").is_file():
            train, test = (read_transforms(folder / f"transforms_{part}.json") for part in ("train", "test"))
            val = folder / "transforms_val.json"
            validation = read_transforms(val) if val.is_file() else None
        else:
            (train, test), validation = split(read_transforms(folder / "transforms.json")), None
        scaled = train.poses.clone()
        scaled[:, :3, 3] *= self.scale
        return Layout(train, validation, test, around(scaled, (0, 79), (0.0, 0.0, 1.0)))


def split(views: Views) -> tuple[Views, Views]:
    """Training and test views of a scene without parts: every eighth is for the test."""
    numbers = range(len(views.paths))
    return views.chosen([n for n in numbers if n % EVERY]), views.chosen([n for n in numbers if n % EVERY == 0])


def read_transforms(path: Path) -> Views:
    """Read a file of cameras.

    Raises:
        UserError: It is missing or damaged, or lacks focal lengths or frames.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = content["frames"]
        poses = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float32)
        paths = [image_path(path.parent, str(frame["file_path"])) for frame in frames]
        if poses.shape[1:] != (4, 4):
            raise ValueError(f"a transform_matrix of shape {tuple(poses.shape[1:])}")
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}: a scene in Blender's layout has one.") from error
    except Exception as error:
        reason = str(error).partition("\n")[0][:120]
        raise UserError(f"{path} is no file of cameras ({type(error).__name__}: {reason}): export it again.") from error
    own = any("fl_x" in frame or "camera_angle_x" in frame for frame in frames)
    size = None
    cameras = []
    for frame, image in zip(frames if own else frames[:1], paths):
        entry = {**content, **frame}
        if "w" not in entry and size is None:
            size = image_size(image)
        cameras.append(read_camera(entry, size, path))
    return Views(paths, poses, cameras)


def read_camera(entry: dict[str, Any], size: tuple[int, int] | None, path: Path) -> Camera:
    """A frame's camera; `size` is that of its image, where the file does not say it."""
    if crooked := [name for name in DISTORTIONS if abs(float(entry.get(name, 0))) > 1e-6]:
        raise UserError(f"{path} has lens distortion ({', '.join(crooked)}): undistort the images first.")
    width, height = (int(entry["w"]), int(entry["h"])) if "w" in entry else size or (0, 0)
    if "fl_x" in entry:
        fx = float(entry["fl_x"])
        fy = float(entry.get("fl_y", fx))
        return Camera(width, height, fx, fy, float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2)))
    if "camera_angle_x" in entry:
        angle = float(entry["camera_angle_x"])
        if not 0 < angle < math.pi:
            raise UserError(f"{path} has camera_angle_x={angle:g}: it must lie between 0 and pi (radians).")
        return Camera.with_angle(width, height, angle)
    raise UserError(f"{path} has no intrinsics: add camera_angle_x (radians), or fl_x, fl_y, cx, cy, w and h (pixels).")


def image_path(folder: Path, name: str) -> Path:
    """The image that a frame names, with or without its suffix."""
    given = folder / name
    for candidate in (given, *(given.with_name(f"{given.name}{suffix}") for suffix in (".png", ".jpg", ".jpeg"))):
        if candidate.is_file():
            return candidate
    return given if given.suffix else given.with_name(f"{given.name}.png")


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its head."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise UserError(f"There is no image {path}, which the poses name: put it there, or remove its pose.") from error
    except Exception as error:
        raise UserError(f"{path} cannot be decoded as an image: replace it.") from error
