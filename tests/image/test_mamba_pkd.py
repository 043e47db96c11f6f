"""Progressive distillation: sums of students, frozen predecessors, prefixes."""

import onnxruntime
import pytest
import torch
from lightning import Trainer, seed_everything
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.export.image import load_image_network
from kdzoo.image.mamba_pkd import MambaPKD
from kdzoo.losses.logits import kd
from kdzoo.metrics.flops import flops
from kdzoo.teachers.sources import Teacher, untrained_teachers

TEACHER = Teacher(timm="cnn_14k", weights="none.safetensors")
SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}


@pytest.fixture
def batch():
    batch = next(iter(RandomLike(SPEC, samples=10, batch_size=10).train_dataloader()))
    batch["label"][8:] = -1
    return batch


def built(**arguments) -> MambaPKD:
    torch.manual_seed(0)
    with untrained_teachers():
        method = MambaPKD(["mamba_16x1_patch7"] * 3, TEACHER, **arguments)
        method.build_for(SPEC)
    return method.eval()


def at(method: MambaPKD, generation: int) -> MambaPKD:
    method.generation = generation
    method.reached.fill_(generation)
    return method


@pytest.mark.parametrize("residual", [True, False])
def test_a_student_learns_what_those_before_it_left(batch, residual):
    method = built(alpha=0.3, temperature=2.0, residual=residual)
    logits = [member(batch["image"]) for member in method.members]
    teacher = method.teacher(batch)
    for generation in range(3):
        total = sum(logits[: generation + 1]) if residual else logits[generation]
        terms = at(method, generation).losses(batch)
        torch.testing.assert_close(terms["ce"], 0.3 * cross_entropy(total[:8], batch["label"][:8]))
        torch.testing.assert_close(terms["kd"], 0.7 * kd(total, teacher, 2.0))
        answer = sum(logits[: generation + 1]) / (1 if residual else generation + 1)
        torch.testing.assert_close(method.student(batch["image"]), answer)
        method.zero_grad()
        sum(terms.values()).backward()
        moved = [any(p.grad is not None and p.grad.any() for p in member.parameters()) for member in method.members]
        assert moved == [number == generation for number in range(3)]


def test_every_prefix_is_scored_and_costed(batch):
    method, logged = at(built(), 2), {}
    method.log = lambda name, value, **_: logged.update({name: value})
    method.log_dict = lambda *_, **__: None
    method.on_test_start()
    known = {key: value[:8] for key, value in batch.items()}
    method.test_step(known, 0)
    method.on_test_epoch_end()
    total, found = 0, []
    for number, member in enumerate(method.members, start=1):
        total = total + member(known["image"])
        found.append(100 * float((total.argmax(1) == known["label"]).float().mean()))
        assert logged[f"test/accuracy_{number}"] == pytest.approx(found[-1])
    assert logged["test/drop"] == pytest.approx(max(0.0, found[0] - found[1], found[1] - found[2]))
    share = flops(method.members[0], SPEC) / flops(method.teacher.networks[0], SPEC)
    assert logged["test/flops_1"] == pytest.approx(100 * share)
    assert logged["test/flops_3"] == pytest.approx(300 * share)


def test_predecessors_stay_as_they_are():
    seed_everything(0, verbose=False)
    with untrained_teachers():
        method = MambaPKD(["mamba_16x1_patch7", "cnn_14k"], TEACHER)
        after_one = {}

        class Watched(MambaPKD):
            def on_train_batch_end(self, *_) -> None:
                if self.trainer.global_step == 2:
                    after_one.update({name: t.clone() for name, t in self.members[0].state_dict().items()})

        method.__class__ = Watched
        Trainer(
            max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(method, datamodule=RandomLike(SPEC, 10, 5))  # fmt: skip
    assert after_one
    assert all(torch.equal(after_one[name], t) for name, t in method.members[0].state_dict().items())


def test_what_holds_states_has_no_weight_decay():
    method = built()
    method._total_steps = 30
    decayed, spared = method.configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(p): name for name, p in method.members.named_parameters()}
    assert {names[id(p)].split(".", 1)[1] for p in spared["params"]} == {
        f"network.blocks.0.ssm.{name}" for name in ("a_log", "d", "step.bias")
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_the_export_has_all_and_each(tmp_path, batch):
    method = at(built(), 2)
    files = method.export(tmp_path / "export")
    assert {"model.onnx", "student_1/model.safetensors", "student_3/model.onnx"} <= set(files)
    session = onnxruntime.InferenceSession(tmp_path / "export" / "model.onnx")
    (logits,) = session.run(None, {"image": batch["image"].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), method.student(batch["image"]), atol=1e-4, rtol=1e-4)
    second, _ = load_image_network(tmp_path / "export" / "student_2")
    assert torch.equal(second.eval()(batch["image"]), method.members[1](batch["image"]))
