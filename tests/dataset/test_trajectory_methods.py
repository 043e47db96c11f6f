"""mtt, ftd, ast, tesla and datm against their equations, and what they say when something is wrong."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from kdzoo.console import console
from kdzoo.dataset import matching
from kdzoo.dataset.ast import AST, balance_factor
from kdzoo.dataset.datm import DATM, right_on_average
from kdzoo.dataset.evaluation import Evaluation
from kdzoo.dataset.experts import Experts
from kdzoo.dataset.ftd import FTD
from kdzoo.dataset.matching import FLOOR, InnerLoop
from kdzoo.dataset.mtt import MTT
from kdzoo.dataset.networks import make
from kdzoo.dataset.tesla import TESLA
from kdzoo.errors import UserError
from kdzoo.losses.matching import distance_ratio

EXPERTS = Experts(count=2, epochs=3, lr=0.1, batch_size=10, augmentation="none")
SMALL = {
    "ipc": 2,
    "expert_epochs": 2,
    "max_start": 2,
    "experts": EXPERTS,
    "lr_img": 1.0,
    "lr_lr": 0.001,
    "lr_start": 0.1,
    "zca": False,
    "width": 6,
    "evaluation": Evaluation(networks=1, epochs=2),
}
PLAIN = InnerLoop(steps=4, augmentation="none")
ALL = [MTT, FTD, AST, TESLA, DATM]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One cache for all: a few settings share their experts."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KDZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(console, "quiet", True)
    yield
    patch.undo()


def small(method, **options):
    options = {"inner": PLAIN, **SMALL, **options}
    if method is DATM:
        options = {"first_max_start": 1, "growth": 1.0, "lr_label": 0.1, "threshold": 10.0, **options}
    return method(**options)


class Losses(Callback):
    """The terms of every step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.found.append({name: float(value) for name, value in pl_module.terms.items()})


def losses(method, data, fit, steps: int = 1, seed: int = 0) -> list[dict[str, float]]:
    watch = Losses()
    add(method, watch)
    fit(method, data, steps, seed)
    return watch.found


def add(method, callback) -> None:
    own = method.configure_callbacks()
    method.configure_callbacks = lambda: [*own, callback]


# ---------------------------------------------------------------------------------------------------- the objective


def test_the_ratio_is_one_for_no_step_and_zero_at_the_target():
    start, target = torch.randn(7), torch.randn(7)
    assert distance_ratio(start, start, target) == 1
    assert distance_ratio(target, start, target) == 0
    assert float(distance_ratio(start + 2 * (target - start), start, target)) == pytest.approx(1)


def test_an_iteration_is_its_equation(dots, fit):
    """Loss, and the updates of pixels and rate with their momentum, by a network and SGD of torch's own."""
    method = small(MTT, lr_lr=0.01)
    images, rate, points, draws = [], [], [], []
    draw_segment, after = method.draw_segment, method.after_step

    def watched():
        images.append(method.images.detach().clone())
        rate.append(method.learned_lr.detach().clone())
        segment = draw_segment()
        points.append(segment.points)
        return segment

    method.draw_segment = watched
    method.after_step = lambda: (
        draws.append((method.images.detach().clone(), float(method.learned_lr.detach()))) or after()
    )
    found = losses(method, dots(), fit, steps=2)
    momentum_x, momentum_a = 0, 0
    for step in range(2):
        x, a = images[step].requires_grad_(), rate[step].requires_grad_()
        network = make("convnet", dots().spec, 6)
        names = [name for name, _ in network.named_parameters()]
        sizes = [p.numel() for p in network.parameters()]
        shapes = [p.shape for p in network.parameters()]
        theta = points[step][0].clone().requires_grad_()
        for _ in range(4):
            weights = {n: part.view(s) for n, part, s in zip(names, theta.split(sizes), shapes)}
            logits = torch.func.functional_call(network, weights, x)
            loss = cross_entropy(logits, torch.tensor([0, 0, 1, 1, 2, 2]))
            theta = theta - a * torch.autograd.grad(loss, theta, create_graph=True)[0]
        start, target = points[step][0], points[step][2]
        ratio = ((theta - target) ** 2).sum() / ((start - target) ** 2).sum()
        assert found[step]["train/loss_ratio"] == pytest.approx(float(ratio.detach()), rel=1e-4)
        for_x, for_a = torch.autograd.grad(ratio, (x, a))
        momentum_x, momentum_a = 0.5 * momentum_x + for_x, 0.5 * momentum_a + for_a
        torch.testing.assert_close(draws[step][0], (x - 1.0 * momentum_x).detach(), atol=1e-5, rtol=1e-4)
        assert draws[step][1] == pytest.approx(float((a - 0.01 * momentum_a).detach()), rel=1e-4)


def test_pieces_are_of_the_trajectories_that_the_buffer_has(dots, fit):
    method = small(MTT, max_start=2, expert_epochs=1)
    segments = []
    draw = method.draw_segment
    method.draw_segment = lambda: segments.append(draw()) or segments[-1]
    fit(method, dots(), steps=16)
    for segment in segments:
        for offset in range(2):
            row = method.trajectories.buffer.snapshot(segment.expert, segment.epoch + offset)
            np.testing.assert_array_equal(segment.points[offset].numpy(), row)
    assert {segment.epoch for segment in segments} == {0, 1}
    for turn in range(8):  # every expert once in a turn
        assert {segments[2 * turn].expert, segments[2 * turn + 1].expert} == {0, 1}


@pytest.mark.parametrize("mode", ["checkpoint", "truncated", "tesla"])
@pytest.mark.parametrize("method", [MTT, AST, DATM])
def test_every_way_to_unroll_starts_with_the_same_loss(mode, method, dots, fit):
    momentum = 0.9 if method is AST else 0.0
    how = InnerLoop(steps=4, batch_size=4, momentum=momentum)
    full = losses(small(method, inner=how), dots(), fit)
    other = losses(small(method, inner=InnerLoop(4, 4, momentum, unroll=mode, last=2)), dots(), fit)
    assert other[0]["train/loss_ratio"] == pytest.approx(full[0]["train/loss_ratio"], rel=1e-3)  # not all round alike


def test_checkpointed_runs_are_the_full_ones_to_the_bit(dots, fit):
    runs = [small(MTT, inner=InnerLoop(steps=4, batch_size=4, unroll=mode)) for mode in ("full", "checkpoint")]
    for run in runs:
        fit(run, dots(), steps=3)
    assert torch.equal(runs[0].images, runs[1].images)
    assert torch.equal(runs[0].learned_lr, runs[1].learned_lr)


def test_the_set_learns(dots, fit):
    found = losses(small(MTT, lr_start=0.02, lr_lr=1e-4, lr_img=0.5, inner=InnerLoop(steps=5)), dots(), fit, steps=60)
    ratios = [terms["train/loss_ratio"] for terms in found]
    assert np.mean(ratios[-10:]) < 0.8 * np.mean(ratios[:10])
    assert found[0]["train/learned_lr"] != found[-1]["train/learned_lr"]


# ------------------------------------------------------------------------------------------------------- the methods


def test_ftd_judges_and_exports_the_average(dots, fit, tmp_path):
    method = small(FTD, ema=0.8)
    seen, average = [], []
    start, after = method.start, method.after_step
    method.start = lambda: start() or average.append(method.images.detach().clone())
    method.after_step = lambda: seen.append(method.images.detach().clone()) or after()
    fit(method, dots(), steps=5)
    expected = average[0]
    for images in seen:
        expected = 0.8 * expected + 0.2 * images
    torch.testing.assert_close(method.final_images(), expected)
    assert not torch.allclose(expected, method.images)
    method.export(tmp_path / "export")
    torch.testing.assert_close(load_file(tmp_path / "export" / "images.safetensors")["images"], expected)


def test_balance_is_the_authors():
    assert balance_factor(10, 20) == pytest.approx(math.log(8) / math.log(5))  # the middle: 1.29
    assert balance_factor(13, 20) == pytest.approx(math.log(11) / math.log(5))
    assert balance_factor(0, 20) == pytest.approx(math.log(5) / math.log(18))


SMOOTH = {"momentum": 0.9, "weight_decay": 0.05, "decay": 0.6, "clip": (0.5, 0.75), "gradient_penalty": 2.0}


@pytest.fixture(scope="module")
def with_all() -> dict:
    experts = Experts(**{**vars(EXPERTS), **SMOOTH, "epochs": 5})
    inner = InnerLoop(steps=4, momentum=0.9, augmentation="none")
    return {"experts": experts, "inner": inner, "perturbation": 1.0, "max_start": 4}


@pytest.mark.parametrize(
    "switch",
    [
        {"experts.momentum": 0.0},
        {"experts.weight_decay": 0.0},
        {"experts.decay": 1.0},
        {"experts.clip": ()},
        {"experts.gradient_penalty": 0.0},
        {"init": "real"},
        {"balance": False},
        {"inner.momentum": 0.0},
        {"intermediate": "none"},
        {"intermediate": "adaptive"},
        {"perturbation": 0.0},
    ],
)
def test_every_switch_of_ast_alone_changes_the_loss(switch, with_all, dots, fit):
    options = dict(with_all)
    for name, value in switch.items():
        part, _, field = name.partition(".")
        options[part] = type(options[part])(**{**vars(options[part]), field: value}) if field else value
    # Over some iterations, so that late epochs, which `decay` alone changes, are among them.
    found, everything = (
        [terms["train/loss"] for terms in losses_with_sum(small(AST, **each), dots(), fit, steps=8)]
        for each in (options, with_all)
    )
    assert all(map(math.isfinite, found))
    assert max(abs(one - two) for one, two in zip(found, everything)) > 1e-3


def losses_with_sum(method, data, fit, steps):
    return [
        {"train/loss": terms["train/loss_ratio"] + terms.get("train/intermediate", 0.0)}
        for terms in losses(method, data, fit, steps)
    ]


def test_ast_perturbs_convolutions_alone_and_by_their_own_size(dots, fit, with_all):
    method = small(AST, **with_all)
    fit(method, dots())
    start = method.trajectories.read(0, [0])[0]
    for before, after in zip(method.student.split(start), method.student.split(method.perturb(start))):
        if before.ndim == 4:
            noise = (after - before) / before
            assert float(noise.norm()) == pytest.approx(1.0, rel=1e-3)  # d / |d|, times alpha = 1
        else:
            assert torch.equal(before, after)


@pytest.mark.parametrize(("kind", "weight"), [("sum", 1.0), ("adaptive", 1 / 2)])
def test_ast_matches_epochs_in_between(kind, weight, dots, fit, with_all):
    """Marks, weights and the perturbed start in every denominator, by the parameters that the inner loop gave."""
    method = small(AST, **{**with_all, "intermediate": kind})
    seen = {}
    inner, draw = method.inner_loop, method.draw_segment

    def drawn():
        seen["segment"] = draw()
        return seen["segment"]

    def watched(start, labels, factor, keep):
        seen.update(start=start, keep=keep, ways=inner(start, labels, factor, keep))
        return seen["ways"]

    method.inner_loop, method.draw_segment = watched, drawn
    (terms,) = losses(method, dots(), fit)
    assert seen["keep"] == (2,)  # N = 4, M = 2
    start, points = seen["start"], seen["segment"].points
    assert not torch.equal(start, points[0])
    ratios = [
        float(((way.detach() - point) ** 2).sum() / ((start - point) ** 2).sum())
        for way, point in zip(seen["ways"], points[1:])
    ]
    assert terms["train/intermediate"] == pytest.approx(weight * ratios[0], rel=1e-4)
    assert terms["train/loss_ratio"] == pytest.approx(ratios[1], rel=1e-4)


def test_the_representative_start_is_the_image_nearest_to_its_centre(dots, fit):
    """At one image per class the centre is the mean of the logits."""
    method = small(AST, ipc=1, lr_img=0.0)
    fit(method, dots())
    weights = method.trajectories.read(0, [3])[0]
    for label, rows in enumerate(method.real.rows):
        images = method.real_images(rows)
        logits = method.student(weights, images)
        nearest = ((logits - logits.mean(0)) ** 2).sum(1).argmin()
        assert torch.equal(method.images[label], images[nearest])


@pytest.mark.parametrize("clusters", [None, 2])
def test_representative_images_are_real_different_and_of_their_class(clusters, dots, fit):
    method = small(AST, ipc=4, clusters=clusters, lr_img=0.0)
    fit(method, dots())
    for label, rows in enumerate(method.real.rows):
        real, chosen = method.real_images(rows), method.images[4 * label : 4 * label + 4]
        found = [int((real == image).flatten(1).all(1).nonzero()[0, 0]) for image in chosen]
        assert len(set(found)) == 4


def test_tesla_takes_its_labels_from_the_target(dots, fit, tmp_path):
    method = small(TESLA, soft_labels=True, inner=InnerLoop(steps=3, batch_size=4, unroll="tesla"))
    seen = []
    ask = method.inner_labels
    method.inner_labels = lambda segment: (
        seen.append((segment.points[-1], method.images.detach().clone())) or ask(segment)
    )
    fit(method, dots(), steps=2)
    target, images = seen[-1]
    expected = method.student(target, images).softmax(1)
    torch.testing.assert_close(method.final_labels(), expected)
    method.export(tmp_path / "export")
    torch.testing.assert_close(load_file(tmp_path / "export" / "images.safetensors")["labels"], expected)


def test_right_on_average_is_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 9, 3, generator=generator), torch.arange(9) % 3
    logits[:, 2, 2] -= 100  # nobody is right about this one
    for row, found in enumerate(right_on_average(logits, labels)):
        right = [each[row] for each in logits if each[row].argmax() == labels[row]]
        expected = torch.stack(right or [each[row] for each in logits]).mean(0)
        torch.testing.assert_close(found, expected)


def test_datm_starts_from_images_that_an_expert_is_right_about(dots, fit):
    method = small(DATM, lr_img=0.0, lr_label=0.0)
    fit(method, dots())
    first = method.last_logits(0, method.images.detach())
    experts = torch.stack([method.last_logits(expert, method.images.detach()) for expert in range(2)])
    for label, rows in enumerate(method.real.rows):
        enough = min(2, int((method.last_logits(0, method.real_images(rows)).argmax(1) == label).sum()))
        assert int((first[2 * label : 2 * label + 2].argmax(1) == label).sum()) >= enough
    torch.testing.assert_close(method.final_labels(), right_on_average(experts, method.labels).softmax(1))


def test_datm_opens_its_window(dots, fit):
    method = small(DATM, max_start=3, expert_epochs=1, min_start=0, first_max_start=1, growth=0.5)
    windows = []
    window = method.window
    method.window = lambda: windows.append(window()) or windows[-1]
    fit(method, dots(), steps=8)
    assert windows == [(0, 1), (0, 1), (0, 2), (0, 2), (0, 3), (0, 3), (0, 3), (0, 3)]


def test_datm_learns_its_labels(dots, fit):
    still, moved = small(DATM, lr_label=0.0), small(DATM, lr_label=1.0)
    fit(still, dots(), steps=3)
    fit(moved, dots(), steps=3)
    assert (still.final_labels() - moved.final_labels()).abs().max() > 1e-6
    torch.testing.assert_close(moved.final_labels().sum(1), torch.ones(6))


def test_above_the_threshold_datm_changes_nothing(dots, fit):
    method = small(DATM, threshold=0.0)
    trainer = fit(method, dots(), steps=1)
    before = copy.deepcopy(method.state_dict())
    assert trainer.global_step == 1
    other = small(DATM, threshold=0.0)
    fit(other, dots(), steps=4)
    for name in ("images", "label_logits", "learned_lr"):
        assert torch.equal(before[name], other.state_dict()[name])


# --------------------------------------------------------------------------------------------- whitening, resume, files


@pytest.mark.parametrize("method", [MTT, FTD])
def test_whitened_sets_are_judged_in_their_space_and_seen_as_pixels(method, dots, fit, tmp_path):
    run = small(method, zca=True, lr_img=0.0)
    trainer = fit(run, dots())
    real = run.real.pixels(run.real.choose(2, 0))
    torch.testing.assert_close(run.images.detach(), run.preprocess(real))
    torch.testing.assert_close(run.preprocess.inverse(run.images.detach()), real, atol=1e-4, rtol=1e-4)
    seen = []
    judge = run._judge
    run._judge = lambda batch: seen.append(batch["image"]) or judge(batch)
    trainer.test(run, datamodule=dots(), verbose=False)
    assert torch.cat(seen).max() <= 1
    run.export(tmp_path / "export")
    kept = load_file(tmp_path / "export" / "images.safetensors")
    assert kept["zca_basis"].shape == (64, 64)


@pytest.mark.parametrize("method", ALL)
def test_a_resumed_run_with_its_experts_ends_where_the_undisturbed_one_does(method, dots, fit, tmp_path):
    options = {"zca": method is FTD, "inner": InnerLoop(steps=3, batch_size=4)}
    whole, again = small(method, **options), small(method, **options)
    add(whole, ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1))
    fit(whole, dots(), steps=5)
    fit(again, dots(), steps=5, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_export_says_which_experts(dots, fit, tmp_path):
    method = small(MTT)
    fit(method, dots())
    method.export(tmp_path / "export")
    facts = json.loads((tmp_path / "export" / "dataset.json").read_text())
    assert facts["experts"] == method.trajectories.buffer.folder.name
    assert facts["learning_rate"] == pytest.approx(float(method.learned_lr.detach()))


def test_the_learned_rate_judges(dots, fit, monkeypatch):
    method = small(MTT, lr_start=0.07, lr_lr=0.0)
    trainer = fit(method, dots())
    rates = []
    monkeypatch.setattr("kdzoo.dataset.judges.train", lambda *given: rates.append(given[4]))
    trainer.test(method, datamodule=dots(), verbose=False)
    assert rates == [pytest.approx(0.07)]


# ---------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("method", ALL)
def test_a_piece_beyond_the_saved_epochs_is_refused(method):
    with pytest.raises(UserError, match=r"max_start=3 and expert_epochs=2 reach epoch 4 of experts that have 3: give"):
        small(method, max_start=3)
    small(method, max_start=2)  # 2 - 1 + 2 = 3: the last snapshot


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (MTT, {"lr_start": 0.0}, "lr_start above 0"),
        (MTT, {"max_start": 0}, "1 or more"),
        (FTD, {"ema": 1.0}, "ema=1.0 never moves"),
        (AST, {"ipc": 3, "clusters": 2}, "no equal parts of 2 clusters"),
        (AST, {"inner": InnerLoop(steps=1)}, "inner.steps=2 or more"),
        (DATM, {"first_max_start": 3}, "cannot grow to 2"),
        (DATM, {"growth": 0.0}, r"growth in \(0, 1\]"),
    ],
)
def test_bad_arguments(method, options, message):
    with pytest.raises(UserError, match=message):
        small(method, **options)


def test_bad_inner_loops():
    with pytest.raises(UserError, match="1 or more"):
        InnerLoop(steps=0)
    with pytest.raises(UserError, match="'flop' in the augmentation"):
        InnerLoop(augmentation="flop")


def test_a_nan_in_the_inner_loop_is_one_sentence(dots, fit):
    with pytest.raises(UserError, match=r"The inner loop from epoch \d of expert \d became NaN .* lower lr_start"):
        fit(small(MTT, lr_start=1e30), dots(), steps=2)


def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(matching, "say", lambda label, text: lines.append(f"{label} {text}"))
    return lines


def test_a_rate_at_its_floor_is_warned_of_once(dots, fit, monkeypatch):
    lines = said(monkeypatch)
    method = small(MTT, lr_start=2 * FLOOR, lr_lr=10.0, lr_img=0.0)
    method.configure_optimizers = lambda: torch.optim.SGD(
        [{"params": [method.images]}, {"params": [method.learned_lr], "lr": -10.0, "maximize": False}], lr=0.0
    )
    fit(method, dots(), steps=3)
    assert float(method.learned_lr.detach()) == pytest.approx(FLOOR)
    assert len(lines) == 1
    assert "fallen to its floor" in lines[0]
    assert "lower lr_lr or lr_img" in lines[0]


def test_a_loss_that_is_stuck_is_warned_of_once(dots, fit, monkeypatch):
    lines = said(monkeypatch)
    monkeypatch.setattr(matching, "PATIENCE", 5)
    fit(small(MTT, lr_start=1e-4, lr_img=0.0, lr_lr=0.0), dots(), steps=8)
    assert len(lines) == 1
    assert "above 0.95 for 5 iterations" in lines[0]
    assert "higher lr_start" in lines[0]


def test_a_run_that_learns_is_not_warned(dots, fit, monkeypatch):
    lines = said(monkeypatch)
    monkeypatch.setattr(matching, "PATIENCE", 5)
    fit(small(MTT), dots(), steps=8)
    assert lines == []
