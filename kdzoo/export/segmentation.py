"""A segmentation network as a folder that runs without kdzoo: ONNX, safetensors, and how to make an image its input."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from kdzoo import __version__
from kdzoo.errors import UserError
from kdzoo.export.image import write_onnx
from kdzoo.files import whole_folder
from kdzoo.students.segmentation import SegmentationNetwork, build_segmenter

README = """# {architecture}, exported by kdzoo {version}

Takes images [B, 3, H, W] in [0, 1] ({size}), normalises them itself, and returns logits [B, {classes}, H, W] of the
classes that `preprocessing.json` names.

    import json, numpy, onnxruntime
    from PIL import Image
    session = onnxruntime.InferenceSession("FOLDER/model.onnx")
    p = json.load(open("FOLDER/preprocessing.json"))
    image = Image.open("photo.png").convert("RGB").resize((p["input_size"][2], p["input_size"][1]))
    image = numpy.asarray(image, numpy.float32).transpose(2, 0, 1)[None] / 255
    mask = session.run(None, {{"image": image}})[0][0].argmax(0)                # ids of p["class_names"], [H, W]
    Image.fromarray(mask.astype(numpy.uint8)).save("mask.png")

`model.safetensors` has the weights, `config.json` the network's name.
"""
WITH_LABELS = """# {architecture}, exported by kdzoo {version}

A teacher with label assistance: it takes [B, {channels}, H, W], of which the last {labels} code the true mask, so it
segments nothing by itself. kdzoo gives it to `lad_seg` as `teacher: {{checkpoint: FOLDER}}`.
"""


def export_segmenter(
    network: SegmentationNetwork, spec: dict[str, Any], folder: Path, scores: dict[str, float] | None = None
) -> list[str]:
    """Write a network into a folder, whole or not at all; an earlier export there is replaced.

    Args:
        network: What to write.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.

    Returns:
        The names of the files: `model.onnx` (input `image` float32 [B, C, H, W], any B, and any H and W but for PSPNet;
        output `logits`), `model.safetensors`, `config.json`, `preprocessing.json`, `README.md`.
    """
    weights = {key: weight.detach().cpu().contiguous() for key, weight in network.state_dict().items()}
    height, width = spec["image_size"]
    channels = network.mean.numel()
    config = {
        "network": network.architecture,
        "label_channels": network.label_channels,
        "spec": spec,
        "scores": scores or {},
        "version": __version__,
    }
    preprocessing = {
        "input_size": [channels, height, width],
        "any_size": network.any_size,
        "range": [0.0, 1.0],
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "normalised_by_the_network": True,
        "class_names": spec["class_names"],
    }
    text = (WITH_LABELS if network.label_channels else README).format(
        architecture=network.architecture,
        version=__version__,
        size="any size" if network.any_size else f"{height} x {width}",
        classes=spec["classes"],
        channels=channels,
        labels=network.label_channels,
    )
    with whole_folder(folder) as work:
        save_file(weights, work / "model.safetensors")
        (work / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (work / "preprocessing.json").write_text(json.dumps(preprocessing, indent=2), encoding="utf-8")
        (work / "README.md").write_text(text, encoding="utf-8")
        example = torch.zeros(2, channels, height, width, device=network.mean.device)
        dynamic = ("batch", "", "height", "width") if network.any_size else ("batch",)
        write_onnx(network, example, work / "model.onnx", "logits", dynamic)
        return sorted(path.name for path in work.iterdir())


def load_segmenter(folder: Path) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Read what `export_segmenter` wrote.

    Args:
        folder: The export, or the run's folder.

    Returns:
        The network, and the whole `config.json`.

    Raises:
        UserError: The folder is no such export, or is damaged.
    """
    inner = folder / "export" if (folder / "export").is_dir() else folder
    try:
        config = json.loads((inner / "config.json").read_text(encoding="utf-8"))
        network = build_segmenter(config["network"], config["spec"], config["label_channels"])
        network.load_state_dict(load_file(inner / "model.safetensors"))
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"'{folder}' holds no intact export of a segmentation run ({type(error).__name__}: {reason})."
        ) from error
    return network, config
