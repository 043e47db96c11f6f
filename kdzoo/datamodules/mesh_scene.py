"""A scene made on the spot: two foxes on a checkered floor, rendered from a mesh that kdzoo ships."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from kdzoo.console import say
from kdzoo.datamodules.blender_scene import BlenderScene
from kdzoo.datamodules.cameras import Camera, look_at
from kdzoo.datamodules.mesh_render import Mesh, disc, merged, render, smooth_normals, sunlit
from kdzoo.datamodules.posed_images import Layout
from kdzoo.errors import UserError
from kdzoo.files import cache_dir, whole_folder

ASSET = "fox.npz"  # NOTICE says whose
VERSION = 1  # raise it when the same arguments make other pictures
RADIUS, FOCAL = 3.0, 1.4  # distance of the cameras; focal length in widths
ELEVATION = (0.05, 0.95)  # sine of the cameras' elevation
GROUND = -0.45


class MeshScene(BlenderScene):
    """Pictures of foxes. They are made at the first use, and kept in kdzoo's cache as a folder in Blender's layout.

    Args:
        size: Width and height of a picture, in pixels.
        views: Training views.
        test_views: Test views.
        split_seed: Seed of the cameras.
        batch_size: Rays per batch and process.
        batches: Batches of an epoch.
        validation: Views that are looked at while training, of 8 that belong to neither training nor test.
        num_workers: Worker processes of the training loader.
    """

    def __init__(
        self,
        size: int = 100,
        views: int = 60,
        test_views: int = 12,
        split_seed: int = 0,
        batch_size: int = 512,
        batches: int = 100,
        validation: int = 4,
        num_workers: int = 0,
    ) -> None:
        if size < 8 or min(views, test_views) < 1 or validation > 8:
            raise UserError(
                f"MeshScene: size={size} must be 8 or more, views={views} and test_views={test_views} 1 or more, and "
                f"validation={validation} 8 at the most."
            )
        super().__init__("", 1.0, 1.0, batch_size, batches, validation, None, "random", num_workers)
        self.size, self.counts, self.split_seed = size, {"train": views, "val": 8, "test": test_views}, split_seed

    def folder(self) -> Path:
        """The scene's folder in the cache; the scene is made if it is not there."""
        asset = Path(__file__).parents[1] / "assets" / ASSET
        made_of = (VERSION, self.size, self.counts, self.split_seed, hashlib.sha256(asset.read_bytes()).hexdigest())
        folder = cache_dir() / "scenes" / hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                say("data", f"{sum(self.counts.values())} pictures of {self.size} x {self.size} pixels are made first")
                with whole_folder(folder) as work:
                    write_scene(work, foxes(asset), self.size, self.counts, self.split_seed)
        return folder

    def layout(self) -> Layout:
        """Read the scene, once it is made."""
        self.root = self.folder()
        return super().layout()


def foxes(asset: Path) -> Mesh:
    """A fox, a smaller one that looks at it, and the floor below them, as one mesh in [-1, 1]^3."""
    with np.load(asset, allow_pickle=False) as content:
        model = {name: content[name] for name in content.files}
    long = model["positions"] @ np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])  # the nose to +x, z upwards
    long = (long - [long[:, 0].mean(), 0, long[:, 2].min()]) / np.ptp(long[:, 0])
    faces, texture = model["faces"], model["texture"]
    parts = [disc(0.9, GROUND, 7)]
    for size, turn, place in ((1.35, 0.5, (0.0, 0.2)), (0.8, 2.4, (0.15, -0.42))):
        rotation = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        positions = size * long @ rotation + [*place, GROUND]
        parts.append(Mesh(positions, smooth_normals(positions, faces), faces, model["coordinates"], texture))
    return merged(parts)


def write_scene(folder: Path, mesh: Mesh, size: int, counts: dict[str, int], seed: int) -> None:
    """Write pictures and cameras into an empty folder."""
    camera, light = Camera(size, size, FOCAL * size, FOCAL * size, size / 2, size / 2), sunlit(mesh)
    random = np.random.default_rng(seed)
    for part, count in counts.items():
        (folder / part).mkdir()
        frames = []
        for number in range(count):
            azimuth, sine = random.uniform(0, 2 * np.pi), random.uniform(*ELEVATION)
            flat = np.sqrt(1 - sine**2)
            position = RADIUS * torch.tensor([flat * np.cos(azimuth), flat * np.sin(azimuth), sine])
            pose = look_at(position, torch.zeros(3).double(), torch.tensor([0.0, 0, 1]).double())
            picture = render(mesh, camera, pose.numpy(), light)
            Image.fromarray(picture).save(folder / part / f"r_{number}.png")
            frames.append({"file_path": f"./{part}/r_{number}", "transform_matrix": pose.tolist()})
        angle = 2 * float(np.arctan(0.5 / FOCAL))
        text = json.dumps({"camera_angle_x": angle, "frames": frames, "camera": asdict(camera)}, indent=1)
        (folder / f"transforms_{part}.json").write_text(text, encoding="utf-8")
