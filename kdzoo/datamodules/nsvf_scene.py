"""Scenes in the layout of NSVF, in which the masked Tanks-and-Temples are."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdzoo.datamodules.blender_scene import image_size
from kdzoo.datamodules.cameras import Camera, around, mean_up
from kdzoo.datamodules.image_folder import image_files
from kdzoo.datamodules.posed_images import Layout, PosedImages, Views
from kdzoo.errors import UserError


class NSVFScene(PosedImages):
    """A folder in NSVF's layout, such as a scene of Tanks-and-Temples with masks.

    An image whose name begins with `0_` is for the training, with `1_` for the test or, if there are names with `2_`,
    for the validation. The box of `bbox.txt` becomes [-bound, bound]^3, its longest side.

    Args:
        root: The scene's folder.
        bound: Half the side of the scene's box.
        batch_size, batches, validation, width, background, num_workers: See `PosedImages`.
    """

    def __init__(
        self,
        root: str,
        bound: float = 1.0,
        batch_size: int = 4096,
        batches: int = 1000,
        validation: int = 4,
        width: int | None = None,
        background: Literal["random", "white"] = "random",
        num_workers: int = 0,
    ) -> None:
        super().__init__(bound, 1.0, batch_size, batches, validation, width, background, num_workers)
        self.root = Path(root)

    def layout(self) -> Layout:
        """Read the cameras."""
        folder = self.root / "rgb"
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: a scene in NSVF's layout has one.")
        paths = image_files(folder)
        box = numbers(self.root / "bbox.txt", 6)[:6]
        low, high = box[:3], box[3:6]
        if not paths or not (high > low).all():
            what = f"{folder} has no images" if not paths else f"The box of {self.root / 'bbox.txt'} is empty"
            raise UserError(f"{what}: a scene in NSVF's layout has some, and a box (least x y z, largest x y z).")
        centre, scale = (low + high) / 2, 2 * self.bound / float((high - low).max())
        width, height = image_size(paths[0])
        matrix = numbers(self.root / "intrinsics.txt", 4)
        if len(matrix) >= 9:  # a matrix of 3 x 3 or 4 x 4
            side = 4 if len(matrix) >= 16 else 3
            fx, cx, fy, cy = matrix[0], matrix[2], matrix[side + 1], matrix[side + 2]
        else:  # focal length and centre in a line
            fx, cx, cy = matrix[:3]
            fy = fx
        camera = Camera(width, height, float(fx), float(fy), float(cx), float(cy))
        parts: dict[str, list[Path]] = {"0": [], "1": [], "2": []}
        for path in paths:
            if path.name[:1] not in parts or path.name[1:2] != "_":
                raise UserError(f"{path} belongs to no part: in NSVF's layout its name begins with 0_, 1_ or 2_.")
            parts[path.name[0]].append(path)
        if not parts["0"] or not (parts["1"] or parts["2"]):
            raise UserError(f"{folder} has no training or no test images (names with 0_, and with 1_ or 2_).")

        def views(chosen: list[Path]) -> Views:
            poses = [self._pose(path, centre, scale) for path in chosen]
            return Views(chosen, torch.stack(poses), [camera])

        train, test = views(parts["0"]), views(parts["2"] or parts["1"])
        validation = views(parts["1"]) if parts["2"] and parts["1"] else None
        return Layout(train, validation, test, around(train.poses, None, mean_up(train.poses)))

    def _pose(self, image: Path, centre: np.ndarray, scale: float) -> torch.Tensor:
        """Camera to world of an image, with OpenGL's axes: the file has y down and the view along z."""
        file = self.root / "pose" / f"{image.stem}.txt"
        pose = numbers(file, 16)[:16].reshape(4, 4)
        pose[:3, :3] *= [1, -1, -1]
        pose[:3, 3] = (pose[:3, 3] - centre) * scale
        return torch.from_numpy(pose).float()


def numbers(path: Path, least: int) -> np.ndarray:
    """All numbers of a text file, float64.

    Raises:
        UserError: It is missing, has fewer, or something else in it.
    """
    try:
        found = np.array([float(word) for word in path.read_text(encoding="utf-8").split()])
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}: a scene in NSVF's layout has one.") from error
    except ValueError as error:
        raise UserError(f"{path} holds something else than numbers: mend it.") from error
    if len(found) < least:
        raise UserError(f"{path} holds {len(found)} numbers, and {least} are needed: mend it.")
    return found
