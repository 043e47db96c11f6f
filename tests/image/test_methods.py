"""The image methods against their equations, written out."""

import pytest
import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, kl_div

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.image.at import AT
from kdzoo.image.born_again import BornAgain
from kdzoo.image.cat_kd import CATKD
from kdzoo.image.crd import CRD
from kdzoo.image.deit_token import DeiTToken
from kdzoo.image.dist import DIST
from kdzoo.image.dkd import DKD
from kdzoo.image.dml import DML
from kdzoo.image.fitnet import FitNet
from kdzoo.image.kd import KD
from kdzoo.image.linear_head import LinearHead
from kdzoo.image.meal_v2 import MEALV2
from kdzoo.image.mgd import MGD
from kdzoo.image.nkd import NKD
from kdzoo.image.nst import NST
from kdzoo.image.ofa_kd import OFAKD
from kdzoo.image.pkt import PKT
from kdzoo.image.reviewkd import ReviewKD
from kdzoo.image.rkd import RKD
from kdzoo.image.simkd import SimKD
from kdzoo.image.sp import SP
from kdzoo.image.supervised import Supervised
from kdzoo.image.takd import TAKD
from kdzoo.image.vid import VID
from kdzoo.losses.features import attention_transfer, noise_contrast
from kdzoo.losses.logits import kd, one_for_all
from kdzoo.optim import Optim
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}
TEACHER = Teacher(timm="cnn_14k", weights="none.safetensors")


def built(method, progress: float = 0.5):
    with untrained_teachers():
        method.build_for(SPEC)
    type(method).progress = property(lambda self: progress)  # each test has a class of its own
    return method.eval()


@pytest.fixture
def batch():
    batch = next(iter(RandomLike(SPEC, samples=6, batch_size=6).train_dataloader()))
    batch["label"][4:] = -1  # two samples without a label
    return batch


def subclass(cls):
    return type(cls.__name__, (cls,), {})


def logits(method, batch):
    return method.student(batch["image"]), method.teacher(batch)


def test_supervised_leaves_the_unlabelled_out(batch):
    method = built(subclass(Supervised)("cnn_14k", label_smoothing=0.1))
    expected = cross_entropy(method.student(batch["image"])[:4], batch["label"][:4], label_smoothing=0.1)
    torch.testing.assert_close(method.losses(batch)["ce"], expected)


def test_kd(batch):
    method = built(subclass(KD)("cnn_14k", TEACHER, temperature=3.0, kd_weight=0.7, ce_weight=0.3))
    student, teacher = logits(method, batch)
    terms = method.losses(batch)
    torch.testing.assert_close(terms["ce"], 0.3 * cross_entropy(student[:4], batch["label"][:4]))
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    torch.testing.assert_close(terms["kd"], 0.7 * 9 * (p * (p / q).log()).sum(1).mean())


def test_dkd_ramps_and_takes_the_teachers_class_without_a_label(batch):
    method = built(subclass(DKD)("cnn_14k", TEACHER, alpha=1.0, beta=2.0, ramp=0.8, temperature=2.0), progress=0.2)
    student, teacher = logits(method, batch)
    label = torch.cat([batch["label"][:4], teacher.argmax(1)[4:]])
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    total = 0.0
    for i in range(6):
        y = label[i]
        others = [c for c in range(5) if c != y]
        b_t, b_s = torch.stack([p[i, y], 1 - p[i, y]]), torch.stack([q[i, y], 1 - q[i, y]])
        n_t, n_s = p[i, others] / (1 - p[i, y]), q[i, others] / (1 - q[i, y])
        total += (b_t * (b_t / b_s).log()).sum() + 2.0 * (n_t * (n_t / n_s).log()).sum()
    torch.testing.assert_close(method.losses(batch)["dkd"], 0.25 * 4 * total / 6, rtol=1e-4, atol=1e-6)


def test_nkd(batch):
    method = built(subclass(NKD)("cnn_14k", TEACHER, gamma=1.5, temperature=2.0))
    student, teacher = logits(method, batch)
    label = torch.cat([batch["label"][:4], teacher.argmax(1)[4:]])
    total = 0.0
    for i in range(6):
        y = label[i]
        others = [c for c in range(5) if c != y]
        q_t, q_s = (teacher[i, others] / 2).softmax(0), (student[i, others] / 2).softmax(0)
        total += -teacher[i].softmax(0)[y] * student[i].log_softmax(0)[y] - 1.5 * 4 * (q_t * q_s.log()).sum()
    torch.testing.assert_close(method.losses(batch)["nkd"], total / 6, rtol=1e-4, atol=1e-6)


def test_fitnet_has_two_stages(batch):
    first = built(subclass(FitNet)("cnn_14k", TEACHER, hint_weight=10.0, hint_fraction=0.4), progress=0.1)
    terms = first.losses(batch)
    guided = first.regressor(first.student.features(batch["image"], ["1"])["1"])
    target = first.teacher.features(batch, ["1"])["1"]
    torch.testing.assert_close(terms["hint"], 10 * ((guided - target) ** 2).mean())
    assert terms["idle"] == 0
    sum(terms.values()).backward()
    assert first.student.network.fc.weight.grad.abs().sum() == 0  # layers above the hint wait
    assert first.student.network.conv[0].weight.grad.abs().sum() > 0

    second = built(subclass(FitNet)("cnn_14k", TEACHER, hint_fraction=0.4, temperature=3.0), progress=0.7)
    student, teacher = logits(second, batch)
    terms = second.losses(batch)
    # Half of stage 2 is done: lambda = 2.5.
    divergence = kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean")
    torch.testing.assert_close(terms["kd"], 2.5 * divergence)
    torch.testing.assert_close(terms["ce"], cross_entropy(student[:4], batch["label"][:4]))


def test_joint_fitnet_is_ce_and_hint(batch):
    method = built(subclass(FitNet)("cnn_14k", TEACHER, variant="joint"))
    assert set(method.losses(batch)) == {"ce", "hint"}


def test_the_teacher_stops_at_the_tap(batch):
    method = built(subclass(FitNet)("cnn_14k", TEACHER, teacher_tap="stage1", student_tap="stage1"), progress=0.0)
    ran = []
    network = method.teacher.networks[0].network
    for name in ("stage1", "stage2", "stage3", "fc"):
        network.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    method.losses(batch)
    assert ran == ["stage1"]


# ------------------------------------------------------------------------------------------- features and memories


SPEC["keys"]["index"] = {"dtype": "int64", "shape": [], "low": 0, "high": 12}


def test_taps_are_compared_in_pairs(batch):
    method = built(subclass(AT)("cnn_14k", TEACHER, student_taps=("1", "3"), teacher_taps=("3", "1")))
    student = method.student.features(batch["image"], ["1", "3"])
    teacher = method.teacher.features(batch, ["1", "3"])
    expected = attention_transfer(student["1"], teacher["3"]) + attention_transfer(student["3"], teacher["1"])
    torch.testing.assert_close(method.losses(batch)["at"], 1000 * expected)


def test_features_of_another_kind_or_place_are_refused():
    with pytest.raises(UserError, match="give as many of each"):
        AT("cnn_14k", TEACHER, student_taps=("1",), teacher_taps=("1", "2"))
    with pytest.raises(
        UserError, match=r"compares maps of features, and the student's 'pre_logits' is of shape \[40\]"
    ):
        built(subclass(AT)("cnn_14k", TEACHER, student_taps=("pre_logits",), teacher_taps=("1",)))
    with pytest.raises(UserError, match=r"no module 'stag1' to tap\. Near: .*stage1"):
        built(subclass(AT)("cnn_14k", TEACHER, student_taps=("stag1",), teacher_taps=("1",)))
    with pytest.raises(UserError, match="'vit_48x4_patch4_28' has no classifier of average pooling"):
        LinearHead(build("vit_48x4_patch4_28", SPEC))
    with pytest.raises(UserError, match="has no distillation token"):
        built(subclass(DeiTToken)("vit_48x4_patch4_28", TEACHER))


MAPLESS = {"student_taps": ("fc1",), "teacher_taps": ("1",)}


@pytest.mark.parametrize(
    ("cls", "taps"),
    [
        (AT, MAPLESS),
        (NST, MAPLESS),
        (VID, MAPLESS),
        (MGD, {"student_tap": "fc1"}),
        (CATKD, {}),
        (SimKD, {}),
        (FitNet, {"student_tap": "fc1"}),
        (OFAKD, {"taps": ("fc1",)}),
    ],
)
def test_a_student_without_maps_is_refused_where_maps_are_compared(cls, taps):
    with pytest.raises(UserError, match=r"of shape \[32\].*: tap .*") as told:
        built(subclass(cls)("mlp_32", TEACHER, **taps))
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"'mlp_32' has no numbered taps, which are maps: name a module path\."):
        built(subclass(AT)("mlp_32", TEACHER))


def test_reviewkd_takes_maps_and_pooled_features_alone():
    with pytest.raises(UserError, match=r"one of shape \[50, 48\]: tap by number, or `pre_logits`"):
        built(subclass(ReviewKD)("vit_48x4_patch4_28", TEACHER, student_taps=("blocks.0",), teacher_taps=("1",)))


@pytest.mark.parametrize("cls", [RKD, DIST, SP, PKT])
def test_a_batch_of_one_has_nothing_to_compare(cls, batch):
    method = built(subclass(cls)("cnn_14k", TEACHER))
    name = cls.__name__.lower()
    with pytest.raises(UserError, match=rf"{name} .* the samples of a batch, and this one has a single sample"):
        method.losses({key: value[:1] for key, value in batch.items()})
    assert all(term.isfinite() for term in method.losses({key: value[:2] for key, value in batch.items()}).values())


def test_a_new_classifier_does_not_teach(batch, tmp_path):
    """Weights of other classes are a teacher of features, not of these classes."""
    save_file(build("cnn_14k", {**SPEC, "classes": 3}).network.state_dict(), tmp_path / "three.safetensors")
    other = Teacher(timm="cnn_14k", weights=str(tmp_path / "three.safetensors"))
    message = r"teacher 'cnn_14k' have a classifier of 3 classes.*train it on these classes first.*features alone"
    for cls in (SimKD, CATKD):
        with pytest.raises(UserError, match=message):
            subclass(cls)("cnn_14k", other).build_for(SPEC)
    method = subclass(KD)("cnn_14k", other)
    method.build_for(SPEC)
    with pytest.raises(UserError, match=message):
        method.losses(batch)
    method = subclass(AT)("cnn_14k", other)
    method.build_for(SPEC)
    assert method.losses(batch)["at"].isfinite()


def test_vid_trains_its_variances(batch):
    method = built(subclass(VID)("cnn_14k", TEACHER))
    alphas = [guess.alpha for guess in method.guesses]
    torch.testing.assert_close(torch.nn.functional.softplus(alphas[0]) + 1e-5, torch.full((16, 1, 1), 5.0))
    method.losses(batch)["vid"].backward()
    assert all(alpha.grad.abs().sum() > 0 for alpha in alphas)
    method._total_steps = 10
    trained = {id(p) for group in method.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert {id(alpha) for alpha in alphas} <= trained


def test_the_mean_of_a_class_map_is_the_logit(batch):
    network = build("cnn_14k", SPEC).eval()
    feature = network.features(batch["image"], ["features"])["features"]
    head = LinearHead(network)
    torch.testing.assert_close(head.everywhere(feature).mean((2, 3)), network(batch["image"]))
    torch.testing.assert_close(head(feature), network(batch["image"]))


def test_simkd_speaks_with_the_teachers_head_and_needs_no_label(batch):
    method = built(subclass(SimKD)("cnn_14k", TEACHER))
    head = method.teacher.networks[0].network.fc
    assert torch.equal(method.student.network.classifier.weight, head.weight)
    assert method.student.network.classifier.weight is not head.weight
    projected = method.student.features(batch["image"], ["features"])["features"]
    teacher = method.teacher.features(batch, ["features"])["features"]
    terms = method.losses(batch)
    torch.testing.assert_close(terms["feature"], ((projected - teacher) ** 2).mean())
    expected = projected.mean((2, 3)) @ head.weight.T + head.bias
    torch.testing.assert_close(method.student(batch["image"]), expected)
    shuffled = method.losses({**batch, "label": batch["label"].flip(0)})
    assert torch.equal(terms["feature"], shuffled["feature"])


def test_crd_contrasts_with_the_other_sides_memory(batch):
    class Started(CRD):
        global_step = 3

    method = built(Started("cnn_14k", TEACHER, negatives=5, width=8))
    before = [memory.rows.clone() for memory in method.memories]
    embedded = [
        torch.nn.functional.normalize(embed(side), dim=1)
        for embed, side in zip(method.embeds, [method.student.features(batch["image"], ["pre_logits"])["pre_logits"],
                                               method.teacher.features(batch, ["pre_logits"])["pre_logits"]])
    ]  # fmt: skip
    rows = method.drawn(batch["index"], 3)
    assert rows.shape == (6, 6)
    assert torch.equal(rows[:, 0], batch["index"])
    assert rows[:, 1:].max() < 12
    assert torch.equal(method.drawn(batch["index"].flip(0), 3), rows.flip(0))  # whatever the batch's order
    assert not torch.equal(method.drawn(batch["index"], 4), rows)
    expected = 0.0
    for side in (0, 1):
        scores = torch.stack([(before[1 - side][rows[i]] @ embedded[side][i] / 0.07).exp() for i in range(6)])
        expected += noise_contrast(scores / (scores.mean() * 12), 12)
    torch.testing.assert_close(method.losses(batch)["crd"], 0.8 * expected)
    for side in (0, 1):
        mixed = 0.5 * before[side][:6] + 0.5 * embedded[side]
        torch.testing.assert_close(method.memories[side].rows[:6], mixed / mixed.norm(dim=1, keepdim=True))
        assert torch.equal(method.memories[side].rows[6:], before[side][6:])


def test_mgd_masks_whole_channels(batch):
    method = built(subclass(MGD)("cnn_14k", TEACHER, masked=0.5))
    seen = []
    method.generate.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method.losses(batch)
    off = (seen[0] == 0).flatten(2).all(2)
    assert 0.3 < off.float().mean() < 0.7


def test_deit_hard_and_soft(batch):
    plain = {"rand_augment": 0.0, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    method = built(subclass(DeiTToken)("deit_48x4_patch4_28", TEACHER, **plain)).train()
    first, second = method.student(batch["image"])
    teacher = method.teacher(batch)
    terms = method.losses(batch)
    torch.testing.assert_close(terms["ce"], 0.5 * cross_entropy(first[:4], batch["label"][:4]))
    torch.testing.assert_close(terms["token"], 0.5 * cross_entropy(second, teacher.argmax(1)))
    method.eval()
    torch.testing.assert_close(method.student(batch["image"]), (first + second) / 2)


# -------------------------------------------------------------------------------------------------------- generations


def test_generations_take_turns():
    torch.manual_seed(0)
    rates, weights = [], []

    class Watched(BornAgain):
        def on_train_batch_end(self, *_) -> None:
            rates.append((self.generation, self.trainer.optimizers[0].param_groups[0]["lr"]))
            weights.append([member.network.fc.weight.detach().clone() for member in self.members])

    method = Watched("cnn_14k", generations=3, optim=Optim(lr=0.1, schedule="cosine", weight_decay=0.1))
    trainer = Trainer(
        max_steps=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, datamodule=RandomLike(SPEC, 12, 6))
    assert [generation for generation, _ in rates] == [0, 0, 1, 1, 2, 2]
    # Logged after the step's update of the rate: the second step of a turn runs at half, the first at the peak again.
    assert [round(rate, 6) for _, rate in rates] == [0.05, 0.1, 0.05, 0.1, 0.05, 0.0]
    for step, generation in enumerate([0, 1, 1, 2, 2], start=1):
        for other in set(range(3)) - {generation}:
            assert torch.equal(weights[step][other], weights[step - 1][other])
    assert len({tuple(w.flatten()[:5].tolist()) for w in weights[0]}) == 3  # each starts afresh
    assert method.student is method.members[2]


def test_born_again_learns_from_the_one_before(batch):
    method = built(subclass(BornAgain)("cnn_14k", generations=2, kd_weight=0.7, ce_weight=0.3))
    assert set(method.losses(batch)) == {"ce", "idle"}
    method.generation = 1
    method.reached.fill_(1)
    first, second = (member(batch["image"]) for member in method.members)
    terms = method.losses(batch)
    torch.testing.assert_close(terms["kd"], 0.7 * cross_entropy(second, first.softmax(1)))
    torch.testing.assert_close(terms["ce"], 0.3 * cross_entropy(second[:4], batch["label"][:4]))
    sum(terms.values()).backward()
    assert all(p.grad.abs().sum() == 0 for p in method.members[0].parameters())


def test_takd_is_a_chain(batch):
    method = built(subclass(TAKD)("cnn_14k", TEACHER, assistants=["cnn_46k"], temperature=2.0))
    assert [member.architecture for member in method.members] == ["cnn_46k", "cnn_14k"]
    for generation in (0, 1):
        method.generation = generation
        method.reached.fill_(generation)
        above = method.teacher(batch) if generation == 0 else method.members[0](batch["image"])
        expected = 0.9 * kd(method.members[generation](batch["image"]), above, 2.0)
        torch.testing.assert_close(method.losses(batch)["kd"], expected)


def test_dml_teaches_both_ways(batch):
    method = built(subclass(DML)("cnn_14k"))
    student, peer = method.student(batch["image"]), method.peer(batch["image"])
    terms = method.losses(batch)
    torch.testing.assert_close(terms["kl"], kd(student, peer, 1.0))
    torch.testing.assert_close(terms["peer_kl"], kd(peer, student, 1.0))
    assert not torch.equal(student, peer)
    terms["kl"].backward()
    assert all(p.grad is None for p in method.peer.parameters())


# -------------------------------------------------------------------------------------------------------- one for all


@pytest.mark.parametrize("student", ["cnn_14k", "vit_48x4_patch4_28"])
def test_ofa_kd_has_an_exit_at_each_tap_and_exports_none(batch, student, tmp_path):
    method = built(subclass(OFAKD)(student, TEACHER, eps=(1.0, 1.2, 1.4, 1.6)))
    logits, features = method.student.forward_with(batch["image"], ["1", "2", "3"])
    teacher, label = method.teacher(batch), batch["label"]
    terms = method.losses(batch)
    torch.testing.assert_close(terms["kd"], one_for_all(logits, teacher, label, 1.6))
    expected = sum(
        one_for_all(exit(features[tap]), teacher, label, eps)
        for exit, tap, eps in zip(method.exits, "123", (1.0, 1.2, 1.4))
    )
    torch.testing.assert_close(terms["exits"], expected)
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in method.parameters())
    assert not any("exit" in name for name in method.student.state_dict())


def test_ofa_kd_says_what_does_not_fit():
    with pytest.raises(UserError, match=r"3 exits and the final logits, but 2 values of eps"):
        OFAKD("cnn_14k", TEACHER, eps=(1.0, 1.5))
    with pytest.raises(UserError, match=r"'blocks.1' of 'vit_48x4_patch4_28' is of shape \[50, 48\]"):
        built(subclass(OFAKD)("vit_48x4_patch4_28", TEACHER, taps=("blocks.1",)))


def test_meal_v2_averages_probabilities_and_knows_no_label(batch):
    method = built(subclass(MEALV2)("cnn_14k", [TEACHER, TEACHER]))
    logits = method.student(batch["image"])
    first, second = (expert(batch) for expert in method.experts)
    assert not torch.equal(first, second)
    terms = method.losses(batch)
    torch.testing.assert_close(terms["kl"], cross_entropy(logits, (first.softmax(1) + second.softmax(1)) / 2))
    judged = method.discriminator(torch.cat([logits, (first + second) / 2]))
    who = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 6)
    expected = -(who * judged.sigmoid().log() + (1 - who) * (1 - judged.sigmoid()).log()).mean()
    torch.testing.assert_close(terms["discriminator"], expected)
    shuffled = method.losses({**batch, "label": batch["label"].flip(0)})
    assert all(torch.equal(terms[name], shuffled[name]) for name in terms)


def test_meal_v2_adversarial_turns_the_students_gradient_around(batch):
    gradients = []
    for mode in ("cooperative", "adversarial"):
        torch.manual_seed(1)
        method = built(subclass(MEALV2)("cnn_14k", TEACHER, discriminator=mode))
        for layer in method.discriminator[::2]:
            layer.bias.data.fill_(0.5)  # no dead ReLU
        method.losses(batch)["discriminator"].backward()
        gradients.append((method.student.network.fc.weight.grad, method.discriminator[0].weight.grad))
    (student, judge), (turned, same) = gradients
    assert student.abs().sum() > 0
    torch.testing.assert_close(turned, -student)
    torch.testing.assert_close(same, judge)


def test_the_discriminator_keeps_its_own_rate_under_the_schedule():
    method = built(subclass(MEALV2)("cnn_14k", TEACHER, optim=Optim(lr=0.1, milestones=(0.5,))))
    method._total_steps = 10
    configured = method.configure_optimizers()
    for _ in range(6):
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    rates = [group["lr"] for group in configured["optimizer"].param_groups]
    assert rates == [pytest.approx(0.01), pytest.approx(1e-5)]
    assert built(subclass(MEALV2)("cnn_14k", TEACHER, discriminator="off")).discriminator is None
