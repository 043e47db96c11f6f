"""Super-resolution networks that were trained before: to start from, or to learn from."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from kdzoo.dense.imdn_network import IMDNNetwork, PlainNetwork
from kdzoo.errors import UserError
from kdzoo.spec import check_spec
from kdzoo.teachers import sources
from kdzoo.teachers.frozen import FrozenTeacher
from kdzoo.teachers.recipe import read_config
from kdzoo.teachers.recipe import trained as train_recipe

Network = IMDNNetwork | PlainNetwork
NETWORKS: dict[str, type[IMDNNetwork] | type[PlainNetwork]] = {"imdn": IMDNNetwork, "plain_sr": PlainNetwork}
SIZES = ("features", "blocks", "layers")  # the networks' arguments, beside the scale


def read_export(folder: Path) -> tuple[Network, dict[str, Any]]:
    """Read the export of a super-resolution run.

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
        network = NETWORKS[config["network"]](config["spec"]["scale"], **config["arguments"])
        network.load_state_dict(load_file(inner / "model.safetensors"))
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"'{folder}' holds no intact export of a super-resolution run ({type(error).__name__}: {reason})."
        ) from error
    return network, config


def warm_start(network: nn.Module, folder: Path) -> None:
    """Load an export's weights; of one for another scale all but the up-sampler.

    Raises:
        UserError: The export is of another architecture.
    """
    given, own = read_export(folder)[0].state_dict(), network.state_dict()
    fits = {name: weight for name, weight in given.items() if name in own and weight.shape == own[name].shape}
    differing = sorted(name for name in own.keys() | given.keys() if name not in fits)
    if wrong := [name for name in differing if not name.startswith("up_sampler.")]:
        raise UserError(f"The weights in '{folder}' are of another architecture: '{wrong[0]}' does not fit.")
    network.load_state_dict({**own, **fits})


def load_teacher(given: list[sources.Teacher], spec: dict[str, Any]) -> tuple[FrozenTeacher, dict[str, Any]]:
    """Load super-resolution networks as a teacher, and say who they are: `source`, `hash`, `parameters`, `scores`.

    Raises:
        UserError: A source is missing or damaged, or is for another scale.
    """
    return sources.freeze(given, [_network(teacher, spec) for teacher in given], inputs=("lr",))


def _network(teacher: sources.Teacher, spec: dict[str, Any]) -> tuple[Network, dict[str, float]]:
    if teacher.timm or teacher.store:
        raise UserError("A teacher of super-resolution is a recipe or the folder of a run, and has no store.")
    if sources.untrained() and not (teacher.checkpoint and Path(teacher.checkpoint).exists()):
        if not teacher.recipe:
            return PlainNetwork(spec["scale"]), {}
        model = read_config(teacher.recipe, teacher.set)["model"]
        sizes = {name: size for name, size in model.get("init_args", {}).items() if name in SIZES}
        return NETWORKS[model["class_path"].partition("@")[0]](spec["scale"], **sizes), {}
    folder = train_recipe(teacher.recipe, teacher.set) if teacher.recipe else Path(str(teacher.checkpoint))
    network, config = read_export(folder)
    check_spec(config["spec"], spec, f"The teacher '{teacher.source}'")
    return network, config["scores"]
