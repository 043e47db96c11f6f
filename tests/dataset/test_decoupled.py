"""Methods that work by a trained teacher alone, against their equations written out."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.rded import RDED, mosaic
from kdzoo.dataset.sre2l import SRe2L, statistics_distance
from kdzoo.errors import UserError
from kdzoo.export.synthetic_set import read_synthetic_set
from kdzoo.teachers.frozen import FrozenTeacher

SMALL = {"teacher": "a_recipe", "width": 8, "evaluation": Evaluation(networks=1, epochs=2)}


def network(*norms: nn.Module) -> nn.Sequential:
    torch.manual_seed(4)
    first, second = norms or (nn.BatchNorm2d(5), nn.BatchNorm2d(6))
    layers = [nn.Conv2d(1, 5, 3), first, nn.ReLU(), nn.Conv2d(5, 6, 3), second, nn.ReLU()]
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    for layer in made:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features) / 4)
            layer.running_var.copy_(torch.rand(layer.num_features))
    return made


@pytest.fixture
def teacher(monkeypatch):
    """A teacher that stands in for any recipe; returns its network."""
    made = network()
    summary = {"source": "test", "hash": "0", "parameters": 1, "scores": {}}
    monkeypatch.setattr("kdzoo.teachers.sources.load", lambda given, spec: (FrozenTeacher([made]), summary))
    return made


def test_statistics_distance_is_its_equation():
    norms = [nn.BatchNorm2d(2), nn.BatchNorm2d(3)]
    inputs = [torch.randn(4, 2, 3, 3), torch.randn(4, 3, 2, 2)]
    for norm in norms:
        norm.running_mean.copy_(torch.randn(norm.num_features))
        norm.running_var.copy_(torch.rand(norm.num_features))
    expected = 0.0
    for x, norm, weight in zip(inputs, norms, (7.0, 1.0)):
        means, variances = 0.0, 0.0
        for channel in range(x.shape[1]):
            values = [float(value) for value in x[:, channel].flatten()]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            means += (mean - float(norm.running_mean[channel])) ** 2
            variances += (variance - float(norm.running_var[channel])) ** 2
        expected += weight * (math.sqrt(means) + math.sqrt(variances))
    assert float(statistics_distance(list(zip(inputs, norms)), 7.0)) == pytest.approx(expected, rel=1e-5)


def test_sre2l_takes_adams_step_for_each_batch_of_one_image_per_class(dots, fit, teacher):
    """The first step of Adam is lr * sign(gradient): the gradient written out, class by class in each batch."""
    options = {"ipc": 2, "crop": (1.0, 1.0), "jitter": 0, "bn_weight": 0.3, "first_bn": 2.0, **SMALL}
    method, start = SRe2L(lr_img=0.01, **options), SRe2L(lr_img=0.0, **options)
    for each in (method, start):
        each._view = lambda x: x
        each.after_step = lambda: None  # the range is another test's
        fit(each, dots())
    images = start.images.detach().clone().requires_grad_()
    total = 0
    for rows in ([0, 2, 4], [1, 3, 5]):
        x = images[rows] * 0.25 + 0.3
        first = teacher[0](x)
        second = teacher[3](teacher[2](teacher[1](first)))
        total = total + cross_entropy(teacher(x), torch.tensor([0, 1, 2]))
        total = total + 0.3 * statistics_distance([(first, teacher[1]), (second, teacher[4])], 2.0)
    total.backward()
    expected = images.detach() - 0.01 * images.grad.sign()
    clear = images.grad.abs() > 1e-5  # beside Adam's epsilon
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(method.images.detach()[clear], expected[clear], atol=2e-5, rtol=1e-5)
    assert float(sum(method.terms.values())) == pytest.approx(float(total.detach()) / 2, rel=1e-4)


def test_sre2l_descends_within_the_range_of_pixels(dots, fit, teacher):
    method = SRe2L(ipc=2, lr_img=0.1, bn_weight=1.0, **SMALL)
    method._view = lambda x: x
    rates, losses = [], []
    step, distil = method.after_step, method.distil_step
    method.after_step = lambda: (step(), rates.append(method.optimizers().param_groups[0]["lr"]))

    def remember(batch):
        terms = distil(batch)
        losses.append(float(sum(terms.values())))
        return terms

    method.distil_step = remember
    fit(method, dots(), steps=30)
    assert losses[-1] < 0.9 * losses[0]
    pixels = method.preprocess.inverse(method.images.detach())
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    assert rates[0] == pytest.approx(0.1)
    assert rates[15] == pytest.approx(0.05)
    assert rates[-1] < 0.001


def test_a_view_is_one_crop_for_all_images(dots, fit, teacher):
    method = SRe2L(ipc=1, crop=(1.0, 1.0), jitter=0, **SMALL)
    x = torch.rand(3, 1, 8, 8)
    views = [method._view(x) for _ in range(8)]
    assert all(torch.equal(view, x) or torch.equal(view, x.flip(-1)) for view in views)
    assert any(torch.equal(view, x) for view in views)
    assert any(torch.equal(view, x.flip(-1)) for view in views)
    method = SRe2L(ipc=1, crop=(0.2, 0.4), jitter=2, **SMALL)
    same = x[:1].expand(3, -1, -1, -1)
    view = method._view(same)
    assert view.shape == x.shape
    assert torch.equal(view[0], view[2])
    assert not torch.equal(view, same)


def test_a_teacher_without_batch_normalisation_is_refused(dots, fit, monkeypatch):
    made = network(nn.Identity(), nn.Identity())
    monkeypatch.setattr("kdzoo.teachers.sources.load", lambda given, spec: (FrozenTeacher([made]), {}))
    with pytest.raises(UserError, match="this teacher has none"):
        fit(SRe2L(ipc=1, **SMALL), dots())


def test_a_mosaic_is_made_row_by_row():
    tiles = torch.stack([torch.full((1, 3, 3), float(number)) for number in range(8)])
    first, second = mosaic(tiles, 2, 6, 6)
    corners = [first[0, 0, 0], first[0, 0, 5], first[0, 5, 0], first[0, 5, 5]]
    assert [float(corner) for corner in corners] == [0, 2, 4, 6]  # the best four tiles are shared out
    assert float(second[0, 2, 3]) == 3
    assert torch.equal(mosaic(tiles, 1, 3, 3), tiles)


def test_a_mosaic_of_an_odd_side_is_whole():
    tiles = torch.rand(4, 3, 3, 4)
    (made,) = mosaic(tiles, 2, 7, 9)
    assert made.shape == (3, 7, 9)
    assert torch.equal(made[:, 4:, 5:], tiles[3])
    assert torch.equal(made[:, :4, :5], interpolate(tiles[:1], (4, 5))[0])


def test_the_teacher_sees_a_tile_in_the_middle(dots, fit, teacher):
    """Whole images, shrunk to tiles: the choice written out."""
    data = dots(counts=(12, 12, 12))
    method = RDED(ipc=2, factor=2, crop=(1.0, 1.0), crops=1, **SMALL)
    fit(method, data)
    for label in range(3):
        own = method.preprocess(data.train_set.images[data.train_set.labels == label] / 255)
        tiles = interpolate(own, (4, 4), mode="bilinear", antialias=True)
        padded = torch.zeros(12, 1, 8, 8)
        padded[:, :, 2:6, 2:6] = tiles
        losses = cross_entropy(teacher(padded * 0.25 + 0.3), torch.full((12,), label), reduction="none")
        best = tiles[losses.argsort()[:8]]
        found = method.images.detach()[2 * label : 2 * label + 2]
        torch.testing.assert_close(found[0, :, :4, :4], best[0])
        torch.testing.assert_close(found[1, :, :4, :4], best[1])
        torch.testing.assert_close(found[0, :, :4, 4:], best[2])
        torch.testing.assert_close(found[1, :, 4:, 4:], best[7])


def test_rded_takes_what_the_teacher_is_surest_of(dots, fit, teacher):
    data = dots()
    method = RDED(ipc=3, factor=1, crop=(1.0, 1.0), **SMALL)
    fit(method, data)
    pixels = data.train_set.images / 255
    losses = cross_entropy(teacher(pixels), data.train_set.labels, reduction="none").detach()
    for label in range(3):
        own = (data.train_set.labels == label).nonzero()[:, 0]
        best = own[losses[own].argsort()[:3]]
        found = method.preprocess.inverse(method.images.detach()[3 * label : 3 * label + 3])
        torch.testing.assert_close(found, pixels[best], atol=1e-5, rtol=1e-5)


def test_more_crops_are_never_worse(dots, fit, teacher):
    def loss(crops: int) -> float:
        method = RDED(ipc=2, factor=1, crops=crops, crop=(0.3, 0.6), **SMALL)
        fit(method, dots())
        return float(cross_entropy(method.teach(method.images.detach()), method.labels))

    assert loss(8) < loss(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": 50, "factor": 3}, "50 images of 9 tiles need 450 candidates of each class, and these are 300"),
        ({"factor": 0}, "factor=0"),
        ({"crop": (0.8, 0.5)}, r"crop=\(0.8, 0.5\)"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
    ],
)
def test_bad_arguments_of_rded(options, message):
    with pytest.raises(UserError, match=message):
        RDED(**{**SMALL, **options})


def test_a_class_with_too_few_images_for_the_tiles_is_named(dots, fit, teacher):
    with pytest.raises(UserError, match="the class 'right' has 10 training images, and 3 images of 4 tiles need 12"):
        fit(RDED(ipc=3, factor=2, **SMALL), dots())


def test_networks_learn_what_the_teacher_says(teacher, dots):
    method = RDED(ipc=1, temperature=3.0, **SMALL)
    method.build_for(dots().spec)
    logits, images = torch.randn(4, 3), torch.randn(4, 1, 8, 8)
    said = teacher(images * 0.25 + 0.3)
    expected = 0.0
    for network_logits, teacher_logits in zip(logits, said):
        p = [math.exp(float(z) / 3) for z in teacher_logits.detach()]
        q = [math.exp(float(z) / 3) for z in network_logits]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        expected += 9 * sum(a * math.log(a / b) for a, b in zip(p, q)) / 4
    found = method.criterion(logits, images, torch.zeros(4, dtype=torch.int64))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_the_export_holds_the_teachers_probabilities(teacher, dots, fit, tmp_path):
    method = RDED(ipc=1, factor=1, **SMALL)
    fit(method, dots())
    method.export(tmp_path / "export")
    tensors, _ = read_synthetic_set(tmp_path / "export")
    expected = teacher(tensors["images"] * 0.25 + 0.3).softmax(1).detach()
    torch.testing.assert_close(tensors["labels"], expected, atol=1e-5, rtol=1e-4)
