"""Choices of images against loops that try everything."""

import pytest
import torch

from kdzoo.dataset.herding import Herding
from kdzoo.errors import UserError
from kdzoo.selection import herding, k_center, k_means, nearest_to


@pytest.fixture(params=range(4))
def features(request):
    generator = torch.Generator().manual_seed(request.param)
    return torch.randn(30, 5, generator=generator, dtype=torch.float64)


def test_herding_is_its_definition(features):
    mean = features.mean(0)
    chosen: list[int] = []
    for k in range(1, 8):
        gaps = {}
        for row in range(len(features)):
            if row not in chosen:
                gaps[row] = float((mean * k - sum(features[other] for other in [*chosen, row])).norm())
        chosen.append(min(gaps, key=gaps.get))
    assert herding(features, 7).tolist() == chosen


def test_k_center_is_its_definition(features):
    distances = [float((row - features.mean(0)).norm()) for row in features]
    chosen = [distances.index(min(distances))]
    while len(chosen) < 7:
        far = [min(float((row - features[other]).norm()) for other in chosen) for row in features]
        chosen.append(far.index(max(far)))
    assert k_center(features, 7).tolist() == chosen


def test_nearest_to_is_its_definition(features):
    centres = features[:6] + 0.1
    chosen: list[int] = []
    for centre in centres:
        free = {row: float((features[row] - centre).norm()) for row in range(len(features)) if row not in chosen}
        chosen.append(min(free, key=free.get))
    assert nearest_to(centres, features).tolist() == chosen


def test_k_means_ends_where_lloyd_rests(features):
    torch.manual_seed(0)
    centres = k_means(features, 4)
    assigned = torch.cdist(features, centres).argmin(1)
    for number in range(4):
        torch.testing.assert_close(centres[number], features[assigned == number].mean(0))


def test_k_means_finds_what_is_apart():
    torch.manual_seed(0)
    means = torch.tensor([[0.0, 0], [100, 0], [0, 100], [100, 100]])
    centres = k_means(torch.cat([mean + torch.rand(20, 2) for mean in means]), 4)
    assert sorted((centres / 100).floor().tolist()) == sorted((means / 100).tolist())


@pytest.mark.parametrize("count", [1, 5])
def test_copies_are_chosen_once_each(count):
    same = torch.ones(5, 3)
    torch.manual_seed(0)
    for chosen in herding(same, count), k_center(same, count), nearest_to(k_means(same, count), same):
        assert len(set(chosen.tolist())) == count


def test_one_image_is_the_one_nearest_to_the_mean(features):
    (best,) = nearest_to(features.mean(0, keepdim=True), features).tolist()
    torch.manual_seed(0)
    assert herding(features, 1).tolist() == k_center(features, 1).tolist() == [best]
    assert nearest_to(k_means(features, 1), features).tolist() == [best]


def test_an_embedding_must_be_trained():
    with pytest.raises(UserError, match="an embedding of 0 epochs"):
        Herding(epochs=0)
