"""Weights of few bits against what they are defined to be: levels, gradients, points, packed files."""

import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors.numpy import load_file
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.export.image import load_image_network
from kdzoo.export.quantised import packed, plain_network
from kdzoo.image.diff_quant import DiffQuant
from kdzoo.image.quant_distill import QuantDistill
from kdzoo.losses.logits import kd
from kdzoo.students.quantised import Buckets, LearnedPoints, UniformLevels, huffman_bits, shared_out
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}
TEACHER = Teacher(timm="cnn_14k", weights="none.safetensors")


def built(method):
    with untrained_teachers():
        method.build_for(SPEC)
    return method


@pytest.fixture
def batch():
    return next(iter(RandomLike(SPEC, samples=6, batch_size=6).train_dataloader()))


@pytest.mark.parametrize(("shape", "rows"), [((7, 5), 4), ((10,), 1), ((3,), 1), ((4, 5, 1, 1), 2)])
def test_buckets_are_cut_filled_and_restored(shape, rows):
    weight = torch.randn(shape)
    buckets = Buckets.of(weight, 10)
    assert len(buckets.scaled) == rows
    assert buckets.scaled.min() == 0
    assert buckets.scaled.max() == 1
    torch.testing.assert_close(buckets.restore(buckets.scaled, weight.shape), weight)
    flat = torch.full((3, 4), 2.5)
    assert torch.equal(UniformLevels(2, 4)(flat), flat)  # no range: no change, and no NaN


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_uniform_levels_are_the_nearest_of_the_buckets_grid(bits):
    torch.manual_seed(0)
    weight = torch.randn(7, 9)
    found = UniformLevels(bits, 16)(weight).flatten()
    for start in range(0, 63, 16):
        bucket = weight.flatten()[start : start + 16]
        grid = torch.linspace(bucket.min(), bucket.max(), 2**bits)
        nearest = grid[(bucket[:, None] - grid).abs().argmin(1)]
        torch.testing.assert_close(found[start : start + 16], nearest)
        assert len(found[start : start + 16].unique()) <= 2**bits


def test_stochastic_rounding_is_right_on_the_mean():
    torch.manual_seed(0)
    levels, weight = UniformLevels(2, 8, rounding="stochastic"), torch.tensor([0.0, 0.1, 0.45, 0.8, 1.0])
    draws = torch.stack([levels(weight) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), weight, atol=0.01, rtol=0)
    grid = torch.linspace(0, 1, 4)
    torch.testing.assert_close(grid[(draws[..., None] - grid).abs().argmin(-1)], draws)
    assert torch.equal(levels.eval()(weight), levels(weight))  # what is evaluated is no draw


@pytest.mark.parametrize(("bits", "bucket"), product([1, 2, 4], [64, 256]))
def test_a_student_has_few_values_in_each_bucket(bits, bucket):
    method = built(QuantDistill("cnn_14k", TEACHER, bits=bits, bucket=bucket))
    plain = dict(plain_network(method.student).network.named_parameters())
    assert plain.keys() == method.quantised.keys()  # all of them, biases and norms too
    for parameter in plain.values():
        for row in parameter.detach().flatten().split(bucket):
            assert len(row.unique()) <= 2**bits
    seen = method.student.network.fc.weight
    assert torch.equal(seen, plain["fc.weight"])


def test_first_layer_and_classifier_can_be_spared():
    method = built(QuantDistill("cnn_14k", TEACHER, first_and_last=False))
    assert not {"conv.0.weight", "fc.weight", "fc.bias"} & method.quantised.keys()
    assert {"conv.1.weight", "stage1.0.conv.0.weight"} <= method.quantised.keys()


def test_the_step_is_that_of_algorithm_1(batch):
    """By hand: load Q(w), differentiate there, step from w."""
    torch.manual_seed(0)
    method = built(QuantDistill("cnn_14k", TEACHER, bits=2, bucket=32)).train()
    originals = {n: p.detach().clone() for n, p in method.student.network.named_parameters()}
    by_hand = plain_network(method.student).train()
    logits, teacher = by_hand(batch["image"]), method.teacher(batch)
    loss = 0.3 * cross_entropy(logits, batch["label"]) + 0.7 * kd(logits, teacher, 2.0)
    loss.backward()

    terms = method.losses(batch)
    torch.testing.assert_close(sum(terms.values()), loss)
    optimizer = torch.optim.SGD(method.student.parameters(), lr=0.1)
    sum(terms.values()).backward()
    optimizer.step()
    gradients = {name: p.grad for name, p in by_hand.network.named_parameters()}
    for name, parameter in method.student.network.named_parameters():
        path = name.replace("parametrizations.", "").removesuffix(".original")
        torch.testing.assert_close(parameter.detach(), originals[name] - 0.1 * gradients[path])


def test_post_mortem_trains_in_full_precision_and_is_rounded_after():
    method = built(QuantDistill("cnn_14k", TEACHER, bits=1, when="after")).train()
    weight = method.student.network.fc.weight
    assert len(weight.unique()) == weight.numel()
    method.eval()
    assert len(method.student.network.fc.weight.unique()) <= 2


# ------------------------------------------------------------------------------------------------------------- points


def test_the_gradient_of_a_point_is_the_papers_sum():
    torch.manual_seed(0)
    weight = torch.randn(6, 7, dtype=torch.float64)
    points = LearnedPoints(weight, count=4, most=9, bucket=10).double()
    down = torch.randn(6, 7, dtype=torch.float64)  # dL/dw
    quantised = points(weight)
    (quantised * down).sum().backward()

    expected = torch.zeros(9, dtype=torch.float64)
    for i, (value, slope) in enumerate(zip(weight.flatten(), down.flatten())):
        bucket = weight.flatten()[i // 10 * 10 :][:10]
        scale = bucket.max() - bucket.min()
        scaled = (value - bucket.min()) / scale
        j = (points.points[:4].detach() - scaled).abs().argmin()
        expected[j] += scale * slope
        torch.testing.assert_close(quantised.flatten()[i], scale * points.points[j] + bucket.min())
    torch.testing.assert_close(points.points.grad, expected)


def test_points_start_at_quantiles_and_may_change_their_order():
    torch.manual_seed(0)
    weight = torch.randn(500)
    points = LearnedPoints(weight, count=5, most=8, bucket=500)
    scaled = ((weight - weight.min()) / (weight.max() - weight.min())).numpy()
    np.testing.assert_allclose(points.points[:5].detach(), np.percentile(scaled, [0, 25, 50, 75, 100]), atol=1e-6)
    before = points(weight).detach()
    with torch.no_grad():
        points.points[:5] = points.points[:5].flip(0)
    assert torch.equal(points(weight), before)
    points.place(weight, 8)
    assert len(points(weight).unique()) == 8
    assert len(LearnedPoints(weight[:3], count=4, most=8, bucket=500).points) == 3


def test_points_are_shared_out_by_gradients():
    assert shared_out(16, [1.0, 1.0, 1.0]) == [16, 16, 16]
    assert shared_out(16, [3.0, 1.0, 0.0]) == [26, 14, 8]
    assert shared_out(4, [0.0, 0.0]) == [4, 4]
    for budget, norms in (16, [0.3, 7.1, 2.2, 0.01]), (4, [5.0, 1.1, 1.2]), (2, [1.0, 2.0]):
        counts = shared_out(budget, norms)
        assert min(counts) >= 2
        assert sum(counts) == budget * len(norms)


def test_norms_are_those_of_the_unquantised_students_mean_gradient(batch):
    method = built(DiffQuant(TEACHER, bits=4))
    network = method.teacher.networks[0]
    other = {**batch, "image": batch["image"].flip(0)}
    clone = plain_network(network).requires_grad_(True)
    loss = (
        cross_entropy(clone(batch["image"]), batch["label"]) + cross_entropy(clone(other["image"]), batch["label"])
    ) / 2
    norms = [g.norm().item() for g in torch.autograd.grad(loss, list(clone.parameters()))]
    method.share_out([batch, other])
    sizes = [p.numel() for p in clone.parameters()]
    expected = [min(count, size) for count, size in zip(shared_out(16, norms), sizes)]
    assert [int(points.used.sum()) for points in method.quantised.values()] == expected
    assert len(set(expected)) > 2
    assert all(p.grad is None for p in network.parameters())


def test_only_points_learn_and_statistics_go_on():
    torch.manual_seed(0)
    method = DiffQuant(TEACHER, bits=3)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with untrained_teachers():
        method.build_for(SPEC)
        before = {name: value.clone() for name, value in method.student.state_dict().items()}
        Trainer(max_steps=2, accelerator="cpu", **quiet).fit(method, datamodule=RandomLike(SPEC, 12, 6))
    changed = {name for name, value in method.student.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if "original" in name} == set()
    assert any(name.endswith("points") for name in changed)
    assert any(name.endswith("running_var") for name in changed)


# ------------------------------------------------------------------------------------------------------------- export


def test_huffman_bits():
    assert huffman_bits(Counter({0: 5, 1: 2, 2: 1, 3: 1})) == 5 * 1 + 2 * 2 + 1 * 3 + 1 * 3
    assert huffman_bits(Counter({7: 4})) == 4


@pytest.mark.parametrize(
    "make", [lambda: QuantDistill("cnn_14k", TEACHER, bits=3, bucket=64), lambda: DiffQuant(TEACHER, bits=3)]
)
def test_the_packed_file_is_the_network(make, tmp_path):
    torch.manual_seed(0)
    method = built(make()).eval()
    files = method.export(tmp_path / "export")
    assert {"quantised.safetensors", "quantised.json", "model.safetensors", "model.onnx"} <= set(files)
    state = load_file(tmp_path / "export" / "quantised.safetensors")
    record = json.loads((tmp_path / "export" / "quantised.json").read_text())
    network, _ = load_image_network(tmp_path / "export")
    own = network.network.state_dict()
    for name, about in record["tensors"].items():
        values, width, k, shape = about["values"], about["width"], about["k"], about["shape"]
        names = {part: state.pop(f"{name}/{part}") for part in ("codes", "levels", "scale", "offset")}
        scope = {
            "numpy": np,
            "values": values,
            "width": width,
            "k": k,
            "shape": shape,
            "packed": names.pop("codes"),
            **names,
        }
        exec(record["unpack"], scope)  # the file's own words
        np.testing.assert_allclose(scope["tensor"], own.pop(name).numpy(), rtol=1e-6, atol=1e-7)
    assert state.keys() == own.keys()
    size = record["bytes"]
    assert size["float32"] > 4 * size["packed"]
    assert size["huffman"] <= size["packed"]
    file = sum(value.nbytes for value in load_file(tmp_path / "export" / "quantised.safetensors").values())
    counters = 8 * sum(name.endswith("num_batches_tracked") for name in state)
    assert size["packed"] == file - counters
    image = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(network.eval()(image), method.student(image))


def test_packing():
    codes = torch.tensor([5, 0, 7, 2])
    assert packed(codes, 3).tolist() == [0b11000101, 0b0101]


def test_levels_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="bits=0 is no number of bits for a weight: give 1 to 8"):
        QuantDistill("cnn_14k", TEACHER, bits=0)
    with pytest.raises(UserError, match="bucket=1 values have no range"):
        DiffQuant(TEACHER, bucket=1)
