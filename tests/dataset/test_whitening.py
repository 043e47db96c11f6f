"""ZCA against its definition in double precision."""

import numpy as np
import pytest
import torch

from kdzoo.dataset.preprocessing import EPSILON, ZCA
from kdzoo.errors import UserError

SPEC = {"channels": 2, "image_size": [4, 3], "mean": [0.5, 0.5], "std": [0.2, 0.3]}


def images(count: int) -> torch.Tensor:
    """Correlated pixels in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(count, 2, 1, 3, generator=generator)
    return 0.7 * base + 0.3 * torch.rand(count, 2, 4, 3, generator=generator)


def fitted(pixels: torch.Tensor) -> ZCA:
    zca = ZCA(SPEC)
    zca.fit(lambda: pixels.split(5), len(pixels))
    return zca


@pytest.mark.parametrize("count", [300, 24, 7])  # more images than values, as many, fewer
def test_whitening_is_its_definition(count):
    pixels = images(count)
    flat = pixels.flatten(1).double().numpy()
    covariance = np.cov(flat, rowvar=False)  # by count - 1
    values, vectors = np.linalg.eigh(covariance)
    matrix = vectors @ np.diag(1 / np.sqrt(values.clip(0) + EPSILON)) @ vectors.T
    other = images(11).flip(0)
    expected = (other.flatten(1).double().numpy() - flat.mean(0)) @ matrix
    np.testing.assert_allclose(fitted(pixels)(other).flatten(1).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("count", [300, 7])
def test_the_inverse_gives_the_pixels_back(count):
    zca, other = fitted(images(count)), images(9)
    torch.testing.assert_close(zca.inverse(zca(other)), other, atol=1e-5, rtol=1e-5)


def test_the_statistics_are_part_of_a_checkpoint():
    first, second = fitted(images(50)), ZCA(SPEC)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images(3)), second(images(3)))
    assert set(first.tensors()) == {"zca_centre", "zca_basis", "zca_scale"}


def test_large_images_are_refused():
    with pytest.raises(UserError, match=r"49,152 values needs a matrix of 9.7 GB: leave zca out"):
        ZCA({**SPEC, "channels": 3, "image_size": [128, 128], "mean": [0.5] * 3, "std": [0.2] * 3})
