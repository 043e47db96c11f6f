"""A super-resolution network as a folder that runs without kdzoo: ONNX for images of any size, and safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from kdzoo import __version__
from kdzoo.export.image import write_onnx
from kdzoo.files import whole_folder

README = """# {network} x{scale}, exported by kdzoo {version}

Takes RGB images [B, 3, H, W] in [0, 1], any size, and returns [B, 3, {scale} H, {scale} W]; clamp the result to [0, 1].

    import numpy, onnxruntime
    from PIL import Image
    session = onnxruntime.InferenceSession("FOLDER/model.onnx")
    image = numpy.asarray(Image.open("photo.png").convert("RGB"), numpy.float32).transpose(2, 0, 1)[None] / 255
    output = session.run(None, {{"image": image}})[0][0]                     # [3, {scale} H, {scale} W]
    pixels = (255 * output.clip(0, 1)).round().astype(numpy.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save("photo_x{scale}.png")

`model.safetensors` has the weights, `config.json` the arguments of the network. A large photograph in one piece takes
much memory: `kdzoo predict --data.image photo.png --ckpt_path ...` works by tiles, with the same result.
"""


def export_super_resolver(
    network: nn.Module,
    name: str,
    arguments: dict[str, Any],
    spec: dict[str, Any],
    folder: Path,
    scores: dict[str, float] | None = None,
) -> list[str]:
    """Write a network into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        network: What to write.
        name: What it is called.
        arguments: Its arguments, without the scale.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.

    Returns:
        The names of the files: `model.onnx` (input `image` float32 [B, 3, H, W], any B, H and W; output `output`),
        `model.safetensors`, `config.json`, `README.md`.
    """
    weights = {key: weight.detach().cpu().contiguous() for key, weight in network.state_dict().items()}
    config = {"network": name, "arguments": arguments, "spec": spec, "scores": scores or {}, "version": __version__}
    with whole_folder(folder) as work:
        save_file(weights, work / "model.safetensors")
        (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        text = README.format(network=name, scale=spec["scale"], version=__version__)
        (work / "README.md").write_text(text, encoding="utf-8")
        if weights:  # interpolation alone is no network
            example = torch.zeros(2, 3, 24, 32, device=next(network.parameters()).device)
            write_onnx(network, example, work / "model.onnx", "output", ("batch", "", "height", "width"))
        return sorted(path.name for path in work.iterdir())
