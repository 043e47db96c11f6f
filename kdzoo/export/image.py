"""An image network as a folder that loads without kdzoo: timm's own format, and ONNX for networks that timm lacks."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.files import whole_folder
from kdzoo.students.network import ImageNetwork

README = """# {architecture}, exported by kdzoo {version}

Images are [B, {channels}, {height}, {width}] in [0, 1]; `preprocessing.json` has the mean and the standard deviation.

{how}"""

SHAPING = ("num_classes", "in_chans", "img_size", "global_pool")

WITH_TIMM = """    import json, timm, torch
    network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
    p = json.load(open("FOLDER/preprocessing.json"))
    mean, std = (torch.tensor(p[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    logits = network((image - mean) / std)
"""

WITH_ONNX = """    import onnxruntime
    session = onnxruntime.InferenceSession("FOLDER/model.onnx")     # normalises by itself
    logits = session.run(None, {"image": image.numpy()})[0]

With kdzoo's networks registered (`import kdzoo.students.build`) it is a timm model too:

"""


def export_image_network(
    network: ImageNetwork, spec: dict[str, Any], folder: Path, scores: dict[str, float] | None = None
) -> list[str]:
    """Write a network into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        network: What to write.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.

    Returns:
        The names of the files: `model.safetensors` and `config.json` (timm's local-dir format), `preprocessing.json`,
        `README.md`, and `model.onnx` (input `image` float32 [B, C, H, W] in [0, 1], any B) where the architecture is
        not timm's own.
    """
    height, width = spec["image_size"]
    preprocessing = {
        "input_size": [spec["channels"], height, width],
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "interpolation": "bicubic",
        "class_names": spec.get("class_names"),
    }
    record = {"spec": spec, "scores": scores or {}, "version": __version__}
    data_config = {name: preprocessing[name] for name in ("input_size", "mean", "std", "interpolation")}
    own = not type(network.network).__module__.startswith("timm.")
    how = WITH_ONNX * own + WITH_TIMM
    text = README.format(
        architecture=network.architecture,
        version=__version__,
        channels=spec["channels"],
        height=height,
        width=width,
        how=how,
    )
    with whole_folder(folder) as work:
        save_for_hf(
            network.network, str(work), model_config={"kdzoo": record}, safe_serialization=True, data_config=data_config
        )
        (work / "preprocessing.json").write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")
        (work / "README.md").write_text(text, encoding="utf-8")
        if own:
            example = torch.zeros(2, spec["channels"], *spec["image_size"], device=network.mean.device)
            write_onnx(network, example, work / "model.onnx", "logits", ("batch",))
        return sorted(path.name for path in work.iterdir())


def export_composed_network(network: nn.Module, spec: dict[str, Any], folder: Path, about: str) -> list[str]:
    """Write a network that is no single timm architecture: `model.onnx`, `preprocessing.json` and `README.md`.

    Args:
        network: Takes images in [0, 1] and normalises them itself.
        spec: The spec of the data that it was trained on.
        folder: Where to; an earlier export there is replaced.
        about: What it is, for the README.

    Returns:
        The names of the files.
    """
    height, width = spec["image_size"]
    size = {"channels": spec["channels"], "height": height, "width": width}
    text = README.format(architecture=about, version=__version__, how=WITH_ONNX.partition("With kdzoo")[0], **size)
    preprocessing = {
        "input_size": [spec["channels"], height, width],
        "mean": list(spec["mean"]),
        "std": list(spec["std"]),
        "class_names": spec.get("class_names"),
    }
    with whole_folder(folder) as work:
        (work / "preprocessing.json").write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")
        (work / "README.md").write_text(text, encoding="utf-8")
        device = next(network.parameters()).device
        example = torch.zeros(2, spec["channels"], height, width, device=device)
        write_onnx(network, example, work / "model.onnx", "logits", ("batch",))
        return sorted(path.name for path in work.iterdir())


def write_onnx(network: nn.Module, example: Tensor, path: Path, output: str, dynamic: Sequence[str]) -> None:
    """Write ONNX of a network that normalises by itself; its mode and device stay as they are.

    Args:
        network: Takes one tensor, which is called `image`.
        example: An input.
        path: Where to.
        output: What the result is called.
        dynamic: What the dimensions of the input that may vary are called, from the first on; "" for one that may not.
    """
    varying = {i: torch.export.Dim(name) for i, name in enumerate(dynamic) if name}
    training = network.training
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network.eval(),
                (example,),
                str(path),
                input_names=["image"],
                output_names=[output],
                dynamic_shapes=(varying,),
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    finally:
        network.train(training)
        logging.getLogger("torch.onnx").setLevel(level)


def load_image_network(folder: Path) -> tuple[ImageNetwork, dict[str, Any]]:
    """Read what `export_image_network` wrote.

    Returns:
        The network, and the whole `config.json`; its key `kdzoo` has spec, scores and version.

    Raises:
        UserError: The folder is no export of kdzoo, or is damaged.
    """
    import kdzoo.students.build  # noqa: F401 - registers kdzoo's networks with timm

    for name in ("config.json", "preprocessing.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"'{folder}' is no export of kdzoo: {name} is missing.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        preprocessing = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        config["kdzoo"]["spec"]
        architecture = config["architecture"]
        if ":" in architecture or not timm.is_model(architecture):  # `hf-hub:` and `local-dir:` lead elsewhere
            raise ValueError(f"no network named {architecture!r}")
        # Only what shapes the network: timm takes downloads and further files by other arguments.
        arguments = {name: value for name, value in config["model_args"].items() if name in SHAPING}
        network = timm.create_model(architecture, **{"num_classes": config["num_classes"], **arguments})
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return ImageNetwork(config["architecture"], network, preprocessing["mean"], preprocessing["std"]), config
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).strip().partition("\n")[0][:160] or type(error).__name__
        raise UserError(f"The export '{folder}' is damaged ({reason}): export the run again, or train it.") from error
