"""Iterated self-distillation: the closed forms against solves, and both methods against their equations."""

import onnxruntime
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from torch.nn.functional import one_hot

from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.image.iter_self_distill import IterSelfDistill
from kdzoo.image.iter_self_distill_kernel import KernelSelfDistill
from kdzoo.image.self_distillation import best_weight, dual_coefficients, gaussian_kernel, limit, next_step
from kdzoo.optim import Optim

PENALTY = 0.3


class Regression:
    """A noisy function of three variables: parts to fit, to hold out and to test; float64, the kernel decomposed."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        x = torch.randn(450, 3, generator=draws, dtype=torch.float64)
        y = (x[:, :1] * 2).sin() + x[:, 1:2] * x[:, 2:] + torch.randn(450, 1, generator=draws, dtype=torch.float64)
        order = torch.arange(450)
        (self.x, self.y), (self.held_x, self.held_y), (self.test_x, self.test_y) = (
            (x[rows], y[rows]) for rows in (order[:150], order[150:250], order[250:])
        )
        self.kernel = gaussian_kernel(self.x, self.x, 0.05)
        self.values, self.vectors = torch.linalg.eigh(self.kernel)

    def solve(self, target: torch.Tensor, penalty: float = PENALTY) -> torch.Tensor:
        """Dual coefficients of plain kernel ridge regression."""
        return torch.linalg.solve(self.kernel + penalty * torch.eye(len(self.x), dtype=torch.float64), target)

    def coefficients(self, b: torch.Tensor) -> torch.Tensor:
        return dual_coefficients(b, self.values, self.vectors, PENALTY, self.y)

    def error(self, coefficients: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> float:
        return float(((gaussian_kernel(x, self.x, 0.05) @ coefficients - y) ** 2).mean())


@pytest.fixture(scope="module")
def regression() -> Regression:
    return Regression()


def ones(problem: Regression) -> torch.Tensor:
    return torch.ones_like(problem.values)


def test_the_closed_form_is_the_iterated_solve(regression):
    b, solved = ones(regression), regression.solve(regression.y)
    assert (regression.coefficients(b) - solved).abs().max() < 1e-8
    for weight in (0.35, 0.0, 0.8, 1.7, 0.1):
        b = next_step(b, regression.values, PENALTY, weight)
        solved = regression.solve(weight * regression.y + (1 - weight) * regression.kernel @ solved)
        assert (regression.coefficients(b) - solved).abs().max() < 1e-8


def test_the_limit_is_ridge_with_an_amplified_penalty(regression):
    for weight in (0.2, 0.7, 1.0):
        expected = regression.solve(regression.y, PENALTY / weight)
        closed = regression.coefficients(limit(regression.values, PENALTY, weight))
        assert (closed - expected).abs().max() < 1e-8
        b = ones(regression)
        for _ in range(400):
            b = next_step(b, regression.values, PENALTY, weight)
        assert (regression.coefficients(b) - expected).abs().max() < 1e-8
    b = ones(regression)
    for _ in range(20_000):
        b = next_step(b, regression.values, PENALTY, 0.0)
    assert (regression.kernel @ regression.coefficients(b)).abs().max() < 1e-8  # without ground truth it collapses


def test_the_best_weight_is_that_of_a_grid(regression):
    first = regression.coefficients(ones(regression))
    alone = regression.coefficients(next_step(ones(regression), regression.values, PENALTY, 0.0))
    kernel = gaussian_kernel(regression.held_x, regression.x, 0.05)
    says = kernel @ first, kernel @ alone
    halves = [(part, *rest) for part, *rest in zip(*(t.split(40) for t in (regression.held_y, *says)))]
    found = best_weight(halves)
    grid = torch.arange(-5, 5, 0.05).tolist()

    def mixed(weight: float) -> torch.Tensor:
        return regression.coefficients(next_step(ones(regression), regression.values, PENALTY, weight))

    errors = [regression.error(mixed(weight), regression.held_x, regression.held_y) for weight in grid]
    assert abs(found - grid[errors.index(min(errors))]) <= 0.05
    assert regression.error(mixed(found), regression.held_x, regression.held_y) <= min(errors)
    ends = [regression.error(mixed(weight), regression.test_x, regression.test_y) for weight in (0.0, 1.0)]
    assert regression.error(mixed(found), regression.test_x, regression.test_y) <= min(ends)
    assert best_weight([(says[0], says[0], says[0])]) == 1.0  # nothing to choose


# ------------------------------------------------------------------------------------------------------------ methods

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def images(**options) -> FashionMNIST:
    return FashionMNIST(**{"labelled": 120, "validation": 60, "batch_size": 60, "flip": False, "shift": 0} | options)


def test_the_kernel_method_takes_the_steps_of_the_closed_form(tmp_path):
    seed_everything(0, verbose=False)
    method = KernelSelfDistill(penalty=PENALTY, points=80)
    trainer = Trainer(max_steps=4, **QUIET)
    trainer.fit(method, datamodule=images())
    student = method.student
    points, held = student.points.double(), images()
    held.setup()
    batch = held.prepare(held.validation_set.__getitems__([(row, 0) for row in range(60)]), augment=False)
    kernel = gaussian_kernel(points, points, student.gamma)
    across = gaussian_kernel(student.flat(batch["image"]).double(), points, student.gamma)
    truth = one_hot(batch["label"], 10).double() - 0.1

    def solve(target):
        return torch.linalg.solve(kernel + PENALTY * torch.eye(80, dtype=torch.float64), target)

    first = current = solve(method.target)
    for _ in range(3):
        alone = solve(kernel @ current)
        weight = best_weight([(truth, across @ first, across @ alone)])
        current = solve(weight * method.target + (1 - weight) * kernel @ current)
    torch.testing.assert_close(student.coefficients.double(), current, atol=1e-4, rtol=1e-3)
    assert float(method.estimated) == pytest.approx(weight, abs=1e-4)
    answer = student.regress(batch["image"], student.coefficients).double()
    torch.testing.assert_close(answer, across @ current + 0.1, atol=1e-4, rtol=1e-3)

    method.eval().export(tmp_path / "export")
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    (logits,) = session.run(None, {"image": batch["image"][:5].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), student(batch["image"][:5]), atol=1e-3, rtol=1e-3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = KernelSelfDistill.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(loaded.student(batch["image"]), student(batch["image"]))


class Watched(Callback):
    """The turn and the weight of every training step."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_end(self, trainer, method, *_) -> None:
        self.seen.append((method.generation, *method.turn(), method.weight()))


def test_the_deep_method_trains_two_networks_a_step_and_mixes_them():
    seed_everything(0, verbose=False)
    watched = Watched()
    method = IterSelfDistill("cnn_14k", steps=2, optim=Optim(name="adam", lr=1e-2, schedule="constant"))
    Trainer(max_steps=10, callbacks=[watched], **QUIET).fit(method, datamodule=images())
    raw = method.estimated.tolist()
    clipped = [min(1.0, max(0.0, weight)) for weight in raw]
    turns = {generation: tuple(rest) for generation, *rest in watched.seen}
    assert turns == {
        0: (-1, True, 1.0), 1: (0, False, 0.0), 2: (0, True, clipped[0]), 3: (1, False, 0.0), 4: (1, True, clipped[1])
    }  # fmt: skip
    data = images()
    data.setup()
    batch = data.prepare(data.validation_set.__getitems__([(row, 0) for row in range(60)]), augment=False)
    method.eval()
    says = [member(batch["image"]).softmax(1).detach() for member in method.members]
    truth = one_hot(batch["label"], 10).float()
    for step, alone in enumerate((1, 3)):
        apart = says[0] - says[alone]
        expected = ((truth - says[alone]) * apart).sum() / (apart**2).sum()
        assert raw[step] == pytest.approx(float(expected), rel=1e-3)

    batch["label"][30:] = -1
    for generation, before in ((1, 0), (2, 0), (3, 2), (4, 2)):
        method.generation = generation
        method.reached.fill_(generation)
        terms, weight = method.losses(batch), method.weight()
        error = ((says[generation] - truth) ** 2)[:30].mean()
        torch.testing.assert_close(terms["truth"], weight * error)
        torch.testing.assert_close(terms["before"], (1 - weight) * ((says[generation] - says[before]) ** 2).mean())


def test_a_given_weight_needs_one_network_a_step():
    method = IterSelfDistill("cnn_14k", steps=3, alpha=0.35)
    method.build_for(images().spec)
    assert len(method.members) == 4
    method.generation = 2
    assert (method.turn(), method.weight()) == ((1, True), 0.35)


def test_without_a_validation_part_there_is_nothing_to_estimate_on():
    for method in (IterSelfDistill("cnn_14k", steps=1), KernelSelfDistill()):
        with pytest.raises(UserError, match=r"estimates its weight on a validation part.*give data.validation, or"):
            Trainer(max_steps=2, **QUIET).fit(method, datamodule=images(validation=0))
    with pytest.raises(UserError, match=r"needs penalty, gamma and points above 0, not 0.0"):
        KernelSelfDistill(penalty=0.0)
    with pytest.raises(UserError, match="steps=-1: use 0"):
        IterSelfDistill("cnn_14k", steps=-1)
    spec = images().spec
    data = RandomLike(spec, 8, 4)
    for batch in (unlabelled := list(data.train_dataloader())):
        batch["label"].fill_(-1)
    data.train_dataloader = lambda: unlabelled
    with pytest.raises(UserError, match="no training sample has one"):
        Trainer(max_steps=2, **QUIET).fit(KernelSelfDistill(), datamodule=data)
