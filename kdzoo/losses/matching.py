"""How far a synthetic set is from a real one: by gradients, by mean features, by where a training leads."""

from collections.abc import Sequence

from torch import Tensor


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Sum over weights and their output rows of 1 - cosine similarity; vectors (biases, norms) do not count.

    Args:
        real: Gradients of a network's weights, [out, ...] each.
        synthetic: Gradients of the same weights.

    Returns:
        A scalar, 0 ... 2 per output row.
    """
    total = real[0].new_zeros(())
    for a, b in zip(real, synthetic, strict=True):
        if a.ndim > 1:
            total = total + row_distances(a.flatten(1), b.flatten(1)).sum()
    return total


def row_distances(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine similarity of the last axis of two tensors [..., D]: [...], 0 ... 2 each."""
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1) + 1e-6)


def distribution_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of the classes' mean features, summed over features and classes.

    Args:
        real: Features [classes, n, D].
        synthetic: Features [classes, m, D].
    """
    return ((real.mean(1) - synthetic.mean(1)) ** 2).sum()


def distance_ratio(end: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """|end - target|^2 / |start - target|^2 of parameters [P]: 1 if nothing was gained, 0 at the target."""
    return (end - target).square().sum() / (start - target).square().sum()
