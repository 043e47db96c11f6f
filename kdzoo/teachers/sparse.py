"""The largest probabilities of a teacher of many classes, and the rest spread evenly: marginal smoothing.

Source: Shen and Xing, arXiv 2112.01528 (FKD), section 3.3.
"""

import math

import torch
from torch import Tensor

VALUES, IDS = "logits.top", "logits.ids"  # the two outputs that a store then has in the place of `logits`


def top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Keep the k largest log-probabilities.

    Args:
        logits: float [B, C, ...], C > k.
        k: How many.

    Returns:
        float [B, k + 1, ...]: log-probabilities, descending, and last the logarithm of the mean probability of the
        classes that are left out; and the classes, int64 [B, k, ...].
    """
    ordered, ids = logits.float().log_softmax(1).sort(dim=1, descending=True, stable=True)
    rest = ordered[:, k:].logsumexp(1, keepdim=True) - math.log(logits.shape[1] - k)
    return torch.cat([ordered[:, :k], rest], 1), ids[:, :k]


def spread(values: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Turn what `top` keeps into logits: float32 [B, classes, ...], whose softmax has the kept probabilities."""
    values = values.float()
    shape = list(values.shape)
    shape[1] = classes
    return values[:, -1:].expand(shape).scatter(1, ids.long(), values[:, :-1])
