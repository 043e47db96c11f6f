"""From a name, a data spec and perhaps weights to a network."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import PretrainedCfg
from torch import Tensor, nn

import kdzoo.students.cifar_resnet
import kdzoo.students.cifar_wrn
import kdzoo.students.mamba
import kdzoo.students.small_cnn
import kdzoo.students.small_mlp
import kdzoo.students.small_vit  # noqa: F401 - the six register their networks with timm
from kdzoo.errors import UserError, near
from kdzoo.students.network import ImageNetwork
from kdzoo.students.packaged import packaged, with_timms_names

log = logging.getLogger(__name__)


def build(name: str, spec: dict[str, Any], weights: str | None = None) -> ImageNetwork:
    """Build a network for the data of `spec`.

    Args:
        name: a name of timm's registry ("resnet18", "vit_small_patch16_224.augreg_in1k"), kdzoo's own among them.
        spec: the data: `classes`, `channels`, `image_size`, and `mean` and `std` of the data.
        weights: None (random), "pretrained" (of a package, `kdzoo.students.packaged`, else timm's download), or the
            path of a .safetensors, .pth or .pt file with a
            state dict. With weights the normalisation is theirs: of the `config.json` beside the file if there is
            one, else of timm's record; without, it is the data's.

    Raises:
        UserError: the name is unknown, the network does not fit the images, or the weights do not fit the network.
    """
    check_name(name)
    try:
        config = (timm.get_pretrained_cfg(name) or PretrainedCfg()).to_dict()
    except RuntimeError as error:  # the part after the dot
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UserError(f"timm has no weights named '{name}'.{near(name, tags)}") from error
    options: dict[str, Any] = {"in_chans": spec["channels"]}
    if config.get("fixed_input_size"):  # timm's mark of a constructor that takes img_size
        options["img_size"] = tuple(spec["image_size"])

    if weights is None:
        network = _create(name, spec, num_classes=spec["classes"], **options)
        return _tried(ImageNetwork(name, network, spec["mean"], spec["std"]), spec)
    package = packaged(name) if weights == "pretrained" else None
    if weights == "pretrained" and package is None:
        network = _create(name, spec, num_classes=spec["classes"], pretrained=True, **options)
        found = config["num_classes"]
    else:
        path = package or Path(weights)
        state = read_state(path)
        state = with_timms_names(state, name) if package else without_decoder(state)
        config |= _saved_config(path.with_name("config.json"))
        found = _head_classes(state, config.get("classifier"))
        network = _create_from(state, path, name, spec, input_size=config["input_size"], num_classes=found, **options)
        if found != spec["classes"]:
            network.reset_classifier(spec["classes"])  # type: ignore[operator]
    if found != spec["classes"]:
        log.info("%s: the head of %d classes is replaced by a new one of %d.", name, found, spec["classes"])
    mean, std = (_per_channel(config.get(key) or spec[key], spec["channels"]) for key in ("mean", "std"))
    built = ImageNetwork(name, network, mean, std)
    built.replaced = found if found != spec["classes"] else None
    return _tried(built, spec)


def check_name(name: str) -> None:
    """Raise a `UserError` if timm knows no network of this name."""
    if not timm.is_model(name):
        raise UserError(f"no network named '{name}'.{near(name, timm.list_models())} All: timm.list_models().")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running anything that the file says.

    Args:
        path: .safetensors, or .pth / .pt with a dict of tensors, bare or under "state_dict" or "model".

    Raises:
        UserError: the file is missing, of another kind, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}: give 'pretrained' or the path of a file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix not in (".pth", ".pt"):
            raise UserError(f"{path} is no weights file: kdzoo reads .safetensors, .pth and .pt.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can fail in any way
        raise UserError(f"{path} cannot be read as weights ({_reason(error)}): save the state dict again.") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: save `network.state_dict()` alone.")
    return content


def without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the decoder that some files of masked autoencoders have: timm's networks are their encoders."""
    if "decoder_embed.weight" not in state:
        return state
    return {name: value for name, value in state.items() if not name.startswith("decoder_") and name != "mask_token"}


def _create(name: str, spec: dict[str, Any], **options: Any) -> nn.Module:
    """timm.create_model, with what may go wrong in it said in one sentence."""
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # assertions, type errors, network errors: timm has no class of its own
        if options.get("pretrained"):
            raise UserError(
                f"no pretrained weights for '{name}' ({_reason(error)}): give the path of a file."
            ) from error
        raise _misfit(name, spec, error) from error


def _tried(network: ImageNetwork, spec: dict[str, Any]) -> ImageNetwork:
    """The network, after a pass over images of the spec's size: some find out only then that they do not fit."""
    try:
        network.tap_shapes(spec, [])
    except Exception as error:  # assertions, errors of shapes
        raise _misfit(network.architecture, spec, error) from error
    return network


def _misfit(name: str, spec: dict[str, Any], error: Exception) -> UserError:
    height, width = spec["image_size"]
    return UserError(
        f"'{name}' does not work on images of {height} x {width} ({_reason(error)}): take another network."
    )


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160] or type(error).__name__


def _create_from(
    state: dict[str, Tensor], path: Path, name: str, spec: dict[str, Any], input_size: Sequence[int], **options: Any
) -> nn.Module:
    """Build with the weights in `state`, through timm's own adaptation of input channels and position embeddings.

    The network gets as many classes as the file has: only then does timm demand every key.
    """
    source = {
        "state_dict": state,
        "num_classes": options["num_classes"],
        "input_size": input_size,
        "label_offset": None,
    }
    try:
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    except Exception as error:  # timm's adaptation of a foreign file can fail in any way
        what = _difference(state, _create(name, spec, **options)) or _reason(error)
        raise UserError(f"{path} does not fit '{name}': {what}. Name the architecture it was saved from.") from error
    del network.pretrained_cfg["state_dict"]  # type: ignore[operator,union-attr]
    return network


def _difference(state: dict[str, Tensor], network: nn.Module) -> str:
    """The first key in which a file and a network differ."""
    own = network.state_dict()
    for key, value in own.items():
        if key not in state:
            return f"'{key}' is missing"
        if state[key].shape != value.shape:
            return f"'{key}' has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
    return next((f"'{key}' is unexpected" for key in state if key not in own), "")


def _head_classes(state: dict[str, Tensor], classifier: str | Sequence[str] | None) -> int:
    """How many classes the head in a file has: 0 if there is none."""
    name = classifier if isinstance(classifier, str) or classifier is None else classifier[0]
    weight = state.get(f"{name}.weight")
    return 0 if weight is None else len(weight)


def _saved_config(path: Path) -> dict[str, Any]:
    """Input size, mean and std from the config.json that timm and kdzoo write beside weights; empty without one."""
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text())["pretrained_cfg"]
        config = {key: saved[key] for key in ("input_size", "mean", "std") if key in saved}
        numbers = [number for values in config.values() for number in values]
        if 0 in config.get("std", []) or not all(0 <= number < 1e6 for number in numbers):
            raise ValueError("numbers out of range")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} beside the weights is not timm's config ({error}): mend or move it.") from error
    return config


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """One value a channel: timm sums a kernel's channels to fit another count, so their values are averaged."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels
