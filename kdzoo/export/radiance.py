"""A radiance field as a folder: its weights, a turn around the scene, distances, and a coloured mesh."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdzoo import __version__
from kdzoo.console import say
from kdzoo.datamodules.cameras import Camera, Prior, orbit, rays
from kdzoo.errors import UserError
from kdzoo.files import whole, whole_folder
from kdzoo.metrics.views import depth_picture

MILLISECONDS = 60  # of a picture of the turntable
VIDEO_SECONDS = 300  # after which ffmpeg is given up
STRIP = 8  # pictures of the strip
LARGEST = 0.05  # components of the mesh with a smaller share of the largest one's faces are left out
CHUNK = 2**16

README = """# Radiance field ({field}), exported by kdzoo {version}

- `turntable.gif`, `strip.png`, and `turntable.mp4` where ffmpeg is installed: a turn around the scene; `depth/`:
  distances, near ones dark.
- `mesh.ply`, `mesh.obj`: the surface where the density is {density:g}, with a colour at every vertex.
- `field.safetensors`, `config.json`: weights and sizes. Positions lie in [-{bound:g}, {bound:g}]^3; poses are camera to
  world, x to the right, y up, the view along -z.

    from pathlib import Path
    from kdzoo.export.radiance import read_radiance
    from kdzoo.nerf.radiance import Radiance
    radiance, config = read_radiance(Path("FOLDER"), Radiance)
    pixels = radiance.look(origin, direction, background)         # each [N, 3]; pixels.rgb [N, 3], .depth, .opacity [N]
"""

View = tuple[Tensor, Tensor, Tensor]  # colours [H, W, 3], distances and opacities [H, W]


def turntable(radiance: Any, prior: Prior, camera: Camera, count: int) -> Iterator[Any]:
    """Render a turn around the scene before white: `Pixels` of [H, W, ...] one after the other."""
    device = radiance.grid.density.device
    pixels = torch.arange(camera.width * camera.height)
    for pose in orbit(prior, count):
        origin, direction = (each.to(device) for each in rays(camera, pose, pixels))
        found = radiance.look(origin, direction, torch.ones_like(origin))
        shape = camera.height, camera.width
        yield type(found)(
            found.rgb.view(*shape, 3).cpu(),
            found.opacity.view(shape).cpu(),
            found.depth.view(shape).cpu(),
            found.weights,
        )


def bytes_of(picture: Tensor) -> np.ndarray:
    """A picture in [0, 1] as uint8."""
    found: np.ndarray = (255 * picture.float().clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
    return found


def write_views(folder: Path, views: Mapping[str, View]) -> list[str]:
    """Write colours and distances of views, by name, as `NAME.png` and `NAME_depth.png`; return the files."""
    files = []
    for name, (rgb, depth, opacity) in views.items():
        for suffix, picture in (("", rgb), ("_depth", depth_picture(depth, opacity))):
            files.append(f"{name}{suffix}.png")
            with whole(folder / files[-1]) as scratch:
                Image.fromarray(bytes_of(picture)).save(scratch, format="PNG")
    return files


@torch.no_grad()
def mesh_of(radiance: Any, cells: int, density: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The surface where a field has a density, by marching cubes.

    Args:
        radiance: A field with its grid; outside of the grid's occupied cells there is nothing.
        cells: Samples along each axis.
        density: Of the surface.

    Returns:
        Positions float32 [V, 3], faces int [F, 3], colours uint8 [V, 3] as seen from outside.

    Raises:
        UserError: scikit-image is missing, or there is no such surface.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise UserError('A mesh needs scikit-image: pip install "kdzoo[nerf]".') from error
    grid, bound = radiance.grid, radiance.bound
    step = 2 * bound / (cells - 1)
    axis = torch.linspace(-bound, bound, cells)
    values = torch.zeros(cells, cells, cells)
    occupied = grid.occupied.cpu()
    place = (grid.place(axis).long()).clamp(0, grid.resolution - 1)
    there = occupied[place][:, place][:, :, place].nonzero()  # [N, 3]
    for part in there.split(CHUNK):
        found = radiance.field.density(axis[part].to(grid.density.device)).float().cpu()
        values[part[:, 0], part[:, 1], part[:, 2]] = found
    if not len(there) or not float(values.min()) < density < float(values.max()):
        raise UserError(
            f"The field has no surface of density {density:g}: its densities reach {float(values.max()):.3g}; give a "
            "smaller mesh_density, or train longer."
        )
    positions, faces, normals, _ = marching_cubes(values.numpy(), density, spacing=(step,) * 3)
    faces = large_parts(faces, len(positions))
    used, faces = np.unique(faces, return_inverse=True)
    positions, normals = positions[used].astype(np.float32) - bound, normals[used].astype(np.float32)
    x, inward = (torch.from_numpy(np.ascontiguousarray(each)) for each in (positions, -normals))
    inward = torch.nn.functional.normalize(inward, dim=1)
    colours = []
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        numbers = radiance.field.features(x[part].to(grid.density.device))
        colours.append(bytes_of(radiance.field.colour(numbers, inward[part].to(grid.density.device))))
    return positions, faces.reshape(-1, 3), np.concatenate(colours)


def large_parts(faces: np.ndarray, vertices: int) -> np.ndarray:
    """The faces of the large components of a mesh."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(vertices, vertices))
    _, part = connected_components(graph, directed=False)
    sizes = np.bincount(part[faces[:, 0]])
    kept: np.ndarray = faces[sizes[part[faces[:, 0]]] >= LARGEST * sizes.max()]
    return kept


def write_ply(path: Path, positions: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> None:
    """Write a mesh with vertex colours as binary PLY."""
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(positions)}"]
    head += [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    head += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    vertices = np.empty(len(positions), [("position", "<f4", 3), ("colour", "u1", 3)])
    vertices["position"], vertices["colour"] = positions, colours
    corners = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    corners["count"], corners["corners"] = 3, faces
    with whole(path) as scratch:
        scratch.write_bytes("\n".join(head).encode() + vertices.tobytes() + corners.tobytes())


def write_obj(path: Path, positions: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> None:
    """Write a mesh with vertex colours (the six-number form of `v`) as OBJ."""
    lines = ["v {:.6f} {:.6f} {:.6f} {:.4f} {:.4f} {:.4f}".format(*p, *c) for p, c in zip(positions, colours / 255)]
    lines += ["f {} {} {}".format(*face) for face in faces + 1]
    with whole(path) as scratch:
        scratch.write_text("\n".join([*lines, ""]), encoding="utf-8")


def export_radiance(
    radiance: Any,
    spec: dict[str, Any],
    folder: Path,
    scores: dict[str, float] | None,
    prior: Prior | None,
    camera: Camera | None,
    frames: int,
    cells: int,
    density: float,
) -> list[str]:
    """Write a radiance field into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        radiance: What to write.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.
        prior: From where the turntable is seen; None: no turntable.
        camera: By which camera; None: no turntable.
        frames: Pictures of the turntable; 0 for none.
        cells: Samples along each axis of the mesh; 0 for none.
        density: Of the mesh's surface.

    Returns:
        The names of the files and folders.
    """
    config: dict[str, Any] = {"radiance": radiance.arguments, "spec": spec, "scores": scores or {}}
    config |= {"prior": asdict(prior) if prior else None, "camera": asdict(camera) if camera else None}
    config["version"] = __version__
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in radiance.state_dict().items()}
    with whole_folder(folder) as work:
        save_file(weights, work / "field.safetensors")
        (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        text = README.format(
            field=radiance.arguments["field"], version=__version__, density=density, bound=radiance.bound
        )
        (work / "README.md").write_text(text, encoding="utf-8")
        if frames and prior is not None and camera is not None:
            write_turntable(work, list(turntable(radiance, prior, camera, frames)))
        if cells:
            try:
                mesh = mesh_of(radiance, cells, density)
                write_ply(work / "mesh.ply", *mesh)
                write_obj(work / "mesh.obj", *mesh)
            except UserError as error:  # the field is worth keeping without one
                say("mesh", f"none: {error}")
        return sorted(path.name for path in work.iterdir())


def write_turntable(folder: Path, views: list[Any]) -> None:
    """Write `turntable.gif`, `strip.png` and `depth/`, and `turntable.mp4` where ffmpeg is installed."""
    pictures = [bytes_of(view.rgb) for view in views]
    first, *others = (Image.fromarray(picture).quantize(128) for picture in pictures)
    first.save(folder / "turntable.gif", save_all=True, append_images=others, duration=MILLISECONDS, loop=0)
    if program := shutil.which("ffmpeg"):
        write_video(program, folder / "turntable.mp4", pictures)
    shown = views[:: max(1, len(views) // STRIP)][:STRIP]
    strip = torch.cat([view.rgb for view in shown], 1)
    Image.fromarray(bytes_of(strip)).save(folder / "strip.png")
    named = {f"{number:02d}": (view.rgb, view.depth, view.opacity) for number, view in enumerate(shown)}
    write_views(folder / "depth", named)


def write_video(program: str, path: Path, pictures: list[np.ndarray]) -> None:
    """Let ffmpeg, a program of its own, write pictures uint8 [H, W, 3] as a video; if it fails there is none.

    The codec is whatever it was built with for MP4. Sides must be even for most, so a white row or column is added.
    """
    height, width = pictures[0].shape[:2]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{1000 / MILLISECONDS:.3f}"]
    wanted = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [program, "-y", "-loglevel", "error", *given, "-i", "-", *wanted, str(path)]
    content = b"".join(picture.tobytes() for picture in pictures)
    try:
        done = subprocess.run(command, input=content, capture_output=True, timeout=VIDEO_SECONDS)
        said = "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip() or f"exit {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:  # the GIF is there all the same
        path.unlink(missing_ok=True)
        say("video", f"none: ffmpeg failed: {said.splitlines()[-1][:160]}")


def read_radiance(folder: Path, make: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """Read what `export_radiance` wrote.

    Args:
        folder: The export, or the run's folder.
        make: The class `Radiance`.

    Returns:
        The field, and the whole `config.json`.

    Raises:
        UserError: The folder is no such export, or is damaged.
    """
    inner = folder / "export" if (folder / "export").is_dir() else folder
    try:
        config = json.loads((inner / "config.json").read_text(encoding="utf-8"))
        radiance = make(**config["radiance"])
        radiance.load_state_dict(load_file(inner / "field.safetensors"))
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"'{folder}' holds no intact export of a radiance field ({type(error).__name__}: {reason})."
        ) from error
    return radiance, config
