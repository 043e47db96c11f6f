"""Forward-facing photographs in LLFF's layout: `poses_bounds.npy` and a folder of images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdzoo.datamodules.blender_scene import image_size, split
from kdzoo.datamodules.cameras import Camera, in_front
from kdzoo.datamodules.image_folder import image_files
from kdzoo.datamodules.posed_images import Layout, PosedImages, Views
from kdzoo.errors import UserError

NEAR = 0.75  # of the nearest depth: how far in front of it the box begins


class LLFFScene(PosedImages):
    """A folder in LLFF's layout; every eighth view, from the first on, is for the test.

    The mean camera looks down -z, and what the photographs show, from the nearest depth to the farthest, is scaled and
    shifted into the middle of the box.

    Args:
        root: The scene's folder.
        images: The folder of images in it; `images_4` and `images_8` hold smaller ones.
        bound: Half the side of the scene's box.
        batch_size, batches, validation, width, num_workers: See `PosedImages`.
    """

    def __init__(
        self,
        root: str,
        images: str = "images_4",
        bound: float = 1.0,
        batch_size: int = 4096,
        batches: int = 1000,
        validation: int = 2,
        width: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(bound, 1.0, batch_size, batches, validation, width, "white", num_workers)
        self.root, self.images = Path(root), images

    def layout(self) -> Layout:
        """Read the cameras."""
        file, folder = self.root / "poses_bounds.npy", self.root / self.images
        try:
            rows = np.load(file, allow_pickle=False).astype(np.float64)
            if rows.ndim != 2 or rows.shape[1] != 17:
                raise ValueError(f"an array of shape {rows.shape}, not [N, 17]")
        except FileNotFoundError as error:
            raise UserError(f"There is no {file}: a scene in LLFF's layout has one.") from error
        except Exception as error:
            reason = str(error).partition("\n")[0][:120]
            raise UserError(
                f"{file} is no file of cameras ({type(error).__name__}: {reason}): make it again."
            ) from error
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: give data.images, the folder of the images in {self.root}.")
        paths = image_files(folder)
        if len(paths) != len(rows) or not paths:
            raise UserError(
                f"{file} has {len(rows)} poses, and {folder} {len(paths)} images: both must be of the same photographs."
            )
        matrices, depths = rows[:, :15].reshape(-1, 3, 5), rows[:, 15:]
        width, height = image_size(paths[0])
        shrunk = width / matrices[0, 1, 4]  # the file is about the images before they were shrunk
        focal = float(matrices[0, 2, 4] * shrunk)
        # Its axes are down, right, back.
        axes = np.stack([matrices[:, :, 1], -matrices[:, :, 0], matrices[:, :, 2], matrices[:, :, 3]], 2)
        poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
        poses[:, :3] = torch.from_numpy(axes)
        poses = facing(poses, float(depths.min()), float(depths.max()), self.bound)
        camera = Camera(width, height, focal, focal, width / 2, height / 2)
        train, test = split(Views(paths, poses, [camera]))
        return Layout(train, None, test, in_front(train.poses))


def facing(poses: Tensor, near: float, far: float, bound: float) -> Tensor:
    """Move cameras [N, 4, 4] so that the mean one looks down -z and depths from `near` to `far` fill the box.

    Returns:
        float32 [N, 4, 4].

    Raises:
        UserError: Depths that are no depths.
    """
    if not 0 < near < far:
        raise UserError(f"The scene's depths go from {near:.3g} to {far:.3g}: they must be positive and grow.")
    back = torch.nn.functional.normalize(poses[:, :3, 2].mean(0), dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(poses[:, :3, 1].mean(0), back), dim=0)
    frame = torch.stack([right, torch.linalg.cross(back, right), back])  # world to the mean camera
    moved = poses.clone()
    moved[:, :3, :3] = frame @ poses[:, :3, :3]
    moved[:, :3, 3] = (poses[:, :3, 3] - poses[:, :3, 3].mean(0)) @ frame.T
    first = NEAR * near
    scale = 2 * bound / (far - first)
    moved[:, :3, 3] *= scale
    moved[:, 2, 3] += bound + first * scale  # the box begins in front of the cameras
    return moved.float()
