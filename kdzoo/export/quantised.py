"""A quantised image network: the ordinary export with the quantised values, and beside it the packed weights."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from kdzoo.export.image import export_image_network
from kdzoo.files import whole, write_text
from kdzoo.students.network import ImageNetwork
from kdzoo.students.quantised import Codes, huffman_bits

UNPACK = (
    "bits = numpy.unpackbits(packed, bitorder='little')[: values * width].reshape(values, width); "
    "code = bits @ (1 << numpy.arange(width)); bucket = numpy.arange(values) // k; "
    "tensor = (scale[bucket] * levels[code] + offset[bucket]).reshape(shape)"
)


def plain_network(student: ImageNetwork) -> ImageNetwork:
    """A copy whose parameters are the quantised values."""
    copy = deepcopy(student).eval()
    for module in list(copy.modules()):
        if is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore
            # By hand: torch's removal takes the attributes from the class, which the copy shares with the student.
            del module.parametrizations
            module.__class__ = type_before_parametrizations(module)
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return copy


def packed(codes: Tensor, width: int) -> Tensor:
    """Integers below 2^width, [N], as bytes: uint8 [ceil(N * width / 8)], lowest bit first."""
    bits = codes.cpu().numpy()[:, None] >> np.arange(width) & 1
    return torch.from_numpy(np.packbits(bits.astype(np.uint8).ravel(), bitorder="little"))


def sizes(encoded: Mapping[str, Codes], network: Any) -> dict[str, int]:
    """Bytes of a network: `float32`; `packed`, as the file has it; `huffman`, with the codes in one Huffman code.

    Scales, offsets and levels are counted (float32), and what is not quantised: buffers and spared parameters. Levels
    of 2^bits equal steps count too.
    """
    state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    whole_size = 4 * sum(tensor.numel() for tensor in state.values())
    rest = whole_size - 4 * sum(len(each.codes) for each in encoded.values())
    extra = sum(4 * (len(e.scale) + len(e.offset) + len(e.levels)) for e in encoded.values())
    counts: Counter[int] = Counter()
    for each in encoded.values():
        counts.update(each.codes.tolist())
    straight = sum(math.ceil(len(each.codes) * width_of(each) / 8) for each in encoded.values())
    coded = math.ceil(huffman_bits(counts) / 8) if counts else 0
    return {"float32": whole_size, "packed": straight + extra + rest, "huffman": coded + extra + rest}


def width_of(encoded: Codes) -> int:
    """Bits of a code."""
    return max(1, math.ceil(math.log2(len(encoded.levels))))


def export_quantised_network(
    student: ImageNetwork,
    encoded: Mapping[str, Codes],
    bucket: int,
    spec: dict[str, Any],
    folder: Path,
    scores: dict[str, float] | None = None,
) -> list[str]:
    """Write what `export_image_network` does, `quantised.safetensors` and `quantised.json`.

    Args:
        student: The network, parametrised.
        encoded: Its quantised parameters by their names.
        bucket: k, how many values share a range.
        spec: The spec of the data that it was trained on.
        folder: Where to.
        scores: Its test scores.

    Returns:
        The names of the files. `quantised.safetensors` holds `NAME/codes` (uint8, packed), `NAME/levels`, `NAME/scale`
        and `NAME/offset` (float32) of every quantised parameter, and the rest of the state as it is; `quantised.json`
        says how to unpack them, and the size in bytes.
    """
    network = plain_network(student)
    files = export_image_network(network, spec, folder, scores)
    state = {n: t.contiguous().cpu() for n, t in network.network.state_dict().items() if n not in encoded}
    about: dict[str, Any] = {}
    for name, each in encoded.items():
        width = width_of(each)
        state[f"{name}/codes"] = packed(each.codes, width)
        for part in ("levels", "scale", "offset"):
            state[f"{name}/{part}"] = getattr(each, part).detach().cpu().float().contiguous()
        about[name] = {"shape": list(each.shape), "values": len(each.codes), "width": width, "k": bucket}
    with whole(folder / "quantised.safetensors") as scratch:
        save_file(state, scratch)
    record = {"bytes": sizes(encoded, network.network), "unpack": UNPACK, "tensors": about}
    write_text(folder / "quantised.json", json.dumps(record, indent=1) + "\n")
    return sorted([*files, "quantised.json", "quantised.safetensors"])
