"""A synthetic set as a folder that loads as a torch data set without kdzoo: safetensors, JSON, and a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.files import whole_folder

TENSORS, FACTS, GRID = "images.safetensors", "dataset.json", "grid.png"
FORMAT = "kdzoo synthetic set 1"

README = """# {images} synthetic images of {classes} classes by {method}, exported by kdzoo {version}

    from safetensors.torch import load_file
    from torch.utils.data import TensorDataset
    dataset = TensorDataset(*(load_file("FOLDER/images.safetensors")[key] for key in ("images", "labels")))

`images` are float32 [{images}, {channels}, {height}, {width}] as a network sees them. To test a network
that was trained on these, {how}
{labels}
`grid.png` shows a class per row.
"""
STANDARDISED = "normalise real images by the mean and the standard deviation in `dataset.json`."
WHITENED = """whiten real images, which are flattened pixels in [0, 1]. `z` is what `load_file` gives:

    basis, scale = z["zca_basis"], z["zca_scale"]
    x, rest = pixels - z["zca_centre"], scale.max()
    whitened = rest * x + ((x @ basis) * (scale - rest)) @ basis.T
"""
HARD = "`labels` are int64 class numbers; their names are in `dataset.json`."
SOFT = "`labels` are float32 probabilities of each class; the names of the classes are in `dataset.json`."


def export_synthetic_set(
    images: Tensor, labels: Tensor, pixels: Tensor, extra: dict[str, Tensor], facts: dict[str, Any], folder: Path
) -> list[str]:
    """Write a synthetic set into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        images: float [N, C, H, W], as networks see them.
        labels: int64 [N], or probabilities [N, classes].
        pixels: The same images in [0, 1] for the picture; values outside are clipped.
        extra: Tensors of a preprocessing that is more than mean and std: `zca_centre` [D], `zca_basis` [D, D],
            `zca_scale` [D].
        facts: What `dataset.json` holds: at least `method`, `spec` (classes, channels, image size, names), and
            `preprocessing` (mean, std).
        folder: Where to.

    Returns:
        The names of the files.
    """
    tensors = {"images": images.float(), "labels": labels, **extra}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    spec = facts["spec"]
    text = README.format(
        images=len(images),
        classes=spec["classes"],
        method=facts["method"],
        version=__version__,
        channels=images.shape[1],
        height=images.shape[2],
        width=images.shape[3],
        how=WHITENED if "zca_basis" in extra else STANDARDISED,
        labels=SOFT if labels.is_floating_point() else HARD,
    )
    with whole_folder(folder) as work:
        save_file(tensors, work / TENSORS)
        held = json.dumps({"format": FORMAT, **facts, "version": __version__}, indent=2)
        (work / FACTS).write_text(held, encoding="utf-8")
        (work / "README.md").write_text(text, encoding="utf-8")
        Image.fromarray(grid(pixels.cpu(), len(images) // spec["classes"])).save(work / GRID)
        return sorted(path.name for path in work.iterdir())


def grid(pixels: Tensor, columns: int) -> np.ndarray:
    """Lay out images [N, C, H, W], in rows of `columns`, as uint8 [height, width, 3] with white lines between them."""
    columns = columns if columns > 1 else 5  # not a tower of single images
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    page = torch.ones(3, rows * (height + 1) - 1, columns * (width + 1) - 1)
    for number, image in enumerate(pixels.clamp(0, 1)):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        page[:, top : top + height, left : left + width] = image if channels == 3 else image.mean(0)
    return (255 * page).round().to(torch.uint8).permute(1, 2, 0).numpy()


def read_synthetic_set(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `export_synthetic_set` wrote: the tensors and the facts.

    Raises:
        UserError: There is no intact synthetic set in the folder.
    """
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is '{facts['format']}', not '{FORMAT}'")
        images, labels, spec = tensors["images"], tensors["labels"], facts["spec"]
        shape = (spec["channels"], *spec["image_size"])
        if images.shape != (len(labels), *shape) or not torch.isfinite(images).all():
            raise ValueError(f"its images are not finite numbers of the shape {list(shape)}")
        hard = labels.dtype == torch.int64 and labels.ndim == 1
        if hard and not ((labels >= 0) & (labels < spec["classes"])).all():
            raise ValueError(f"its labels are not classes 0 ... {spec['classes'] - 1}")
        if not hard and labels.shape != (len(images), spec["classes"]):
            raise ValueError("its labels are neither classes nor probabilities of them")
        if not all(len(facts["preprocessing"][name]) == spec["channels"] for name in ("mean", "std")):
            raise ValueError("its mean and std are not one per channel")
        size = images[0].numel()
        whitening = {"zca_centre": (size,), "zca_basis": (size, size), "zca_scale": (size,)}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("zca_")}
        if given and given != whitening:
            raise ValueError("its whitening does not fit its images")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no intact synthetic set ({error}): export it again.") from error
    return tensors, facts


def to_pixels(tensors: dict[str, Tensor], facts: dict[str, Any]) -> Tensor:
    """The images that `read_synthetic_set` gives, back in the space of pixels: float32 [N, C, H, W], not clipped."""
    images = tensors["images"]
    if "zca_basis" in tensors:
        centre, basis, scale = (tensors[f"zca_{name}"] for name in ("centre", "basis", "scale"))
        rest, flat = 1 / scale.max(), images.flatten(1)
        return (rest * flat + ((flat @ basis) * (1 / scale - rest)) @ basis.T + centre).view_as(images)
    mean, std = (torch.tensor(facts["preprocessing"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    return images * std + mean
