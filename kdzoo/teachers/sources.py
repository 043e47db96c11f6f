"""Where a teacher comes from: a recipe, a run or checkpoint, or timm."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from kdzoo.console import count, say
from kdzoo.errors import UserError
from kdzoo.export.image import load_image_network
from kdzoo.registry import RECIPE
from kdzoo.spec import check_spec
from kdzoo.students.build import build
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers.frozen import Dtype, FrozenTeacher, Keep
from kdzoo.teachers.recipe import read_config, trained

_untrained: ContextVar[bool] = ContextVar("untrained", default=False)


@dataclass(frozen=True)
class Teacher:
    """A teacher, from exactly one source: `recipe`, `checkpoint` or `timm`.

    Args:
        recipe: Name of a config that trains it, such as `teacher_fmnist_small`; trained when it is not in the cache.
        set: Changes to the recipe's config, as {dotted key: value}.
        checkpoint: A run's folder, its export folder, or a `.ckpt` file.
        timm: A timm architecture; needs `weights`.
        weights: For `timm`: `pretrained`, or a file of weights (safetensors, or a torch file of plain tensors); of the
            data's classes, unless its features alone teach.
        dtype: Precision of its forward pass; None follows the Trainer's.
        store: Keep its outputs on the training part on disk and read them instead of running it, in this precision.
        views: With a store: how many different augmentations of a sample there are; as many as epochs is exact.
        outputs: What the store keeps: `logits`, and taps such as `pre_logits`. Whatever it lacks is computed.
        top_k: With a store: keep only the largest so many probabilities of a sample, and spread the rest evenly.
    """

    recipe: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    timm: str | None = None
    weights: str | None = None
    dtype: Dtype | None = None
    store: Literal["fp32", "fp16"] | None = None
    views: int = 4
    outputs: tuple[str, ...] = ("logits",)
    top_k: int | None = None

    @property
    def source(self) -> str:
        """The source in a few words."""
        return self.recipe or self.checkpoint or self.timm or "no source"


Teachers = str | Teacher | list[Teacher]


def teachers(given: Teachers) -> list[Teacher]:
    """Spell out the short forms: a string is a recipe, one teacher is a list of one.

    Raises:
        UserError: A teacher has no source, or more than one.
    """
    listed = [Teacher(recipe=given)] if isinstance(given, str) else given if isinstance(given, list) else [given]
    # Arguments that come out of a checkpoint are plain dictionaries.
    listed = [Teacher(**each) if isinstance(each, dict) else each for each in listed]
    for each in listed:
        named = [name for name in ("recipe", "checkpoint", "timm") if getattr(each, name)]
        if len(named) != 1:
            has = " and ".join(named) or "none"
            raise UserError(f"A teacher needs exactly one of recipe, checkpoint and timm, and this one has {has}.")
        if each.timm and not each.weights:
            raise UserError(f"The teacher '{each.timm}' has no weights: give teacher.weights, a file or 'pretrained'.")
        if each.views < 1 or not each.outputs:
            raise UserError("A teacher's views must be 1 or more, and its outputs must name something.")
        if each.top_k is not None and (each.store is None or "logits" not in each.outputs or each.top_k < 1):
            raise UserError("A teacher's top_k is for the logits of a store: give store and a top_k of 1 or more.")
    for name in ("dtype", "store", "views", "outputs", "top_k"):
        if len({repr(getattr(each, name)) for each in listed}) > 1:
            raise UserError(f"Several teachers are averaged, so they share one {name}: give all of them the same.")
    return listed


@contextmanager
def untrained_teachers() -> Iterator[None]:
    """Make every teacher a freshly initialised network of its architecture: for tests of shapes and steps."""
    token = _untrained.set(True)
    try:
        yield
    finally:
        _untrained.reset(token)


def untrained() -> bool:
    """Whether teachers are freshly initialised at present."""
    return _untrained.get()


def prepare(given: list[Teacher]) -> None:
    """Train the recipes that are not in the cache."""
    for teacher in given:
        if teacher.recipe and not _untrained.get():
            trained(teacher.recipe, teacher.set)


def weights_file(weights: str | None) -> str | None:
    """Find the file behind `recipe:NAME`, the student that this config trains, trained if it is not in the cache.

    Other weights are as given; a recipe inside of `untrained_teachers` is None.
    """
    if weights is None or not weights.startswith(RECIPE):
        return weights
    return None if _untrained.get() else str(trained(weights.removeprefix(RECIPE), {}) / "model.safetensors")


def load(given: list[Teacher], spec: dict[str, Any]) -> tuple[FrozenTeacher, dict[str, Any]]:
    """Load the teachers for data of this spec.

    Returns:
        The frozen teacher, and a summary: source, hash, parameters, scores (of the first, where it has any).

    Raises:
        UserError: A source is missing or damaged, or was made for other data.
    """
    loaded = [network_of(teacher, spec) for teacher in given]
    look = "".join(f"{network.mean.tolist()}{network.std.tolist()}" for network, _ in loaded)
    return freeze(given, loaded, look=look)


def freeze(
    given: list[Teacher],
    loaded: Sequence[tuple[Any, dict[str, float]]],
    inputs: Sequence[str] = ("image",),
    look: str = "",
) -> tuple[FrozenTeacher, dict[str, Any]]:
    """Make networks into a teacher, and say once who it is.

    Args:
        given: What was asked for.
        loaded: A network and its test scores for each.
        inputs: Keys of the batch that the networks take.
        look: What shapes their outputs beside modules and weights, for the hash.

    Returns:
        As `load`.
    """
    networks = [network for network, _ in loaded]
    digest = hashlib.sha256(look.encode())
    for network in networks:
        digest.update(str(network).encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(
                tensor.detach().cpu().contiguous().view(torch.uint8).numpy() if tensor.dim() else repr(tensor).encode()
            )
    summary: dict[str, Any] = {
        "source": " + ".join(teacher.source for teacher in given),
        "hash": digest.hexdigest()[:8],
        "parameters": sum(parameter.numel() for network in networks for parameter in network.parameters()),
        "scores": loaded[0][1] if len(loaded) == 1 else {},
    }
    shown = ("test/accuracy", "test/psnr_y", "test/psnr", "test/miou")
    scores = ", ".join(f"{name} {value:.1f}" for name, value in summary["scores"].items() if name in shown)
    if not _untrained.get():
        size = count(summary["parameters"])
        say("teacher", f"{summary['source']} ({size} parameters, {summary['hash']}) {scores}".rstrip())
    first, keep = given[0], None
    if first.store and not _untrained.get():
        dtype: Any = {"fp32": "float32", "fp16": "float16"}[first.store]
        keep = Keep(dtype, first.views, tuple(first.outputs), first.top_k, summary["source"], digest.hexdigest())
    return FrozenTeacher(networks, first.dtype, inputs, keep), summary


def network_of(teacher: Teacher, spec: dict[str, Any]) -> tuple[ImageNetwork, dict[str, float]]:
    """Load one classifier, and its test scores where it has any.

    Raises:
        UserError: The source is missing or damaged, or was made for other data.
    """
    # A checkpoint that is there costs no training, and only it knows its architecture.
    if _untrained.get() and not (teacher.checkpoint and Path(teacher.checkpoint).exists()):
        architecture = teacher.timm or "cnn_14k"
        if teacher.recipe:
            architecture = read_config(teacher.recipe, teacher.set)["model"]["init_args"]["student"]
        return build(architecture, spec), {}
    if teacher.timm:
        return build(teacher.timm, spec, teacher.weights), {}
    if teacher.recipe:
        return _exported(trained(teacher.recipe, teacher.set), spec, f"The teacher of recipe '{teacher.recipe}'")
    path = Path(str(teacher.checkpoint))
    if path.is_dir():
        return _exported(path / "export" if (path / "export").is_dir() else path, spec, f"The teacher '{path}'")
    return _from_checkpoint(path, spec), {}


def _exported(folder: Path, spec: dict[str, Any], what: str) -> tuple[ImageNetwork, dict[str, float]]:
    network, config = load_image_network(folder)
    check_spec(config["kdzoo"]["spec"], spec, what)
    return network, config["kdzoo"].get("scores") or {}


def _from_checkpoint(path: Path, spec: dict[str, Any]) -> ImageNetwork:
    checkpoint = read_checkpoint(path)
    architecture = checkpoint.get("hyper_parameters", {}).get("student")
    if architecture is None or not checkpoint.get("spec"):
        raise UserError(
            f"The teacher '{path}' is no checkpoint of a kdzoo classifier: give a run's folder, or an export."
        )
    check_spec(checkpoint["spec"], spec, f"The teacher '{path}'")
    network = build(architecture, checkpoint["spec"])
    weights = {n.removeprefix("student."): w for n, w in checkpoint["state_dict"].items() if n.startswith("student.")}
    body: Any = network.network
    head = next((name for name, module in network.named_modules() if module is body.get_classifier()), None)
    if head and not any(name.startswith(f"{head}.") for name in weights):
        body.reset_classifier(0)  # a pre-training's network has no head
        network.replaced = 0
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"The teacher '{path}' holds weights of another architecture than {architecture}.") from error
    return network


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running anything that is in it.

    Raises:
        UserError: There is no such file, it is truncated, or it holds more than plain values and tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no checkpoint at '{path}'.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: RuntimeError, UnpicklingError, EOFError, KeyError ...
        reason = (
            "holds objects that loading would run, which kdzoo refuses"
            if "weights_only" in str(error).lower() and "Unsupported" in str(error)
            else "is damaged or not a checkpoint"
        )
        raise UserError(f"The checkpoint '{path}' {reason}: use one that kdzoo or Lightning wrote.") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"The file '{path}' is no Lightning checkpoint (it has no state_dict).")
    return checkpoint
