"""Volume distillation: its distances, pools and stages, and what is easy to get wrong in them."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer, seed_everything

from kdzoo.console import quieten
from kdzoo.datamodules.cameras import Camera, SpherePrior
from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.export.radiance import export_radiance
from kdzoo.nerf.distances import distance, heaviest
from kdzoo.nerf.pools import PosePool, RayPool
from kdzoo.nerf.pvd_al import PVDAL, inherit_blocks
from kdzoo.nerf.radiance import Radiance
from kdzoo.nerf.radiance_field import RadianceField
from kdzoo.teachers.sources import Teacher

SIZES = {
    "hash": {"levels": 4, "table": 8, "finest": 32},
    "mlp": {"octaves": 3, "layers": 3, "width": 16, "skip": 1},
    "vm": {"resolution": 8, "density_rank": 2, "colour_rank": 3},
    "tensors": {"resolution": 8},
}
RAY = {"dtype": "float32", "shape": [3], "low": -1.0, "high": 1.0}
NUMBER = {"dtype": "int64", "shape": [], "low": 0, "high": 2**31}
KEYS = {**dict.fromkeys(("origin", "direction", "rgb", "background"), RAY), "index": NUMBER, "view": NUMBER}
SPEC = {"modality": "radiance_field", "bound": 1.0, "keys": KEYS}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """An export of each field, untrained but not faint."""
    folder = tmp_path_factory.mktemp("teachers")
    for field, sizes in SIZES.items():
        torch.manual_seed(1)
        radiance = Radiance(field, sizes, 1.0, steps=24, resolution=8)
        for parameter in radiance.field.parameters():
            parameter.data.mul_(1.5)
        export_radiance(radiance, SPEC, folder / field, None, None, None, 0, 0, 10.0)
    return folder


def method(teachers, teacher="hash", field="vm", **options):
    found = PVDAL(teacher=Teacher(checkpoint=str(teachers / teacher)), field=field, sizes=SIZES[field], **options)
    found.build_for(SPEC)
    return found


def batch(count=40):
    return next(iter(RandomLike(SPEC, count, count).train_dataloader()))


def at(method, progress, step=0):
    """Put a method somewhere in a run, without a Trainer's loop."""
    method.prior, method.camera = SpherePrior((2.0, 2.0)), Camera.with_angle(16, 16, 0.8)
    method._trainer = SimpleNamespace(
        global_step=step, world_size=1, global_rank=0, strategy=SimpleNamespace(reduce=lambda value, reduce_op: value)
    )
    method._total_steps = step / progress if progress else math.inf
    return method


def test_the_distance_is_the_norm_of_the_whole_difference():
    a, b = torch.randn(7, 16), torch.randn(7, 16)
    assert float(distance(a, b)) == pytest.approx(float((a - b).square().sum().sqrt()), rel=1e-5)
    assert float(distance(a, b, "norm_l1")) == pytest.approx(float((a - b).abs().sum()), rel=1e-5)
    assert float(distance(a, b, "mean_l2")) == pytest.approx(float((a - b).square().mean()), rel=1e-5)
    for scale in (1.0, 1e-3):  # the gradient's length does not know how far they are apart
        x = (b + scale * (a - b)).requires_grad_()
        distance(x, b).backward()
        assert float(x.grad.norm()) == pytest.approx(1, rel=1e-4)
    same = b.clone().requires_grad_()
    distance(same, b).backward()
    assert not same.grad.any()  # and no NaN where they are equal
    assert float(distance(a[:0], b[:0])) == 0


def test_the_heaviest_points_are_floor_of_a_share_and_one():
    generator = torch.Generator().manual_seed(0)
    counts = [1, 2, 3, 4, 7, 10, 0, 20, 5]
    ray = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    weights = torch.rand(len(ray), generator=generator) / 20
    opacity = torch.full((len(counts),), 0.5)
    opacity[4] = 0.49
    kept = heaviest(weights, ray, len(counts), 0.3, opacity)
    for number, count in enumerate(counts):
        mine = kept[ray == number]
        expected = 0 if number == 4 or not count else math.floor(0.3 * count) + 1
        assert int(mine.sum()) == expected
        if 0 < expected < count:
            own = weights[ray == number]
            assert own[mine].min() > own[~mine].max()


@pytest.mark.parametrize("field", ["hash", "mlp", "vm", "tensors"])
def test_a_student_that_is_the_teacher_has_no_loss_and_does_not_move(teachers, field):
    student = method(teachers, field, field, weight_decay=0.0, sparsity=0.0, depth_weight=1.0)
    student.student.load_state_dict(student.teacher.networks[0].state_dict())
    for progress in (0.01, 0.1, 0.5):
        terms = at(student, progress, step=10).losses(batch())
        assert all(float(term.detach()) == 0 for term in terms.values()), terms
        torch.stack(list(terms.values())).sum().backward()
        assert not any(p.grad is not None and p.grad.any() for p in student.parameters())
    optimizer = student.configure_optimizers()["optimizer"]
    before = [p.detach().clone() for p in student.student.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, student.student.parameters()))


def test_both_fields_see_the_same_points(teachers, monkeypatch):
    student = at(method(teachers, inherit="none"), 0.5, step=3)
    seen = {}
    for name, field in (("student", student.student.field), ("teacher", student.teacher.networks[0].field)):
        features = field.features
        monkeypatch.setattr(field, "features", lambda x, f=features, n=name: (seen.__setitem__(n, x), f(x))[1])
    student.losses(batch())
    assert torch.equal(seen["student"], seen["teacher"])
    assert len(seen["student"]) > 20


@pytest.mark.parametrize(
    ("progress", "live"),
    [(0.0, "feature"), (0.066, "feature"), (0.067, "feature density colour"), (0.17, "feature density colour rgb")],
)
def test_the_stages_bring_in_the_terms_one_after_the_other(teachers, progress, live):
    student = at(method(teachers, field="mlp"), progress, step=10)
    terms = student.losses(batch())
    assert terms.keys() == set(live.split())
    torch.stack(list(terms.values())).sum().backward()
    idle = all(p.grad is None for p in student.student.field.colour_net.parameters())
    assert idle == (live == "feature")


def test_the_feature_weight_falls_from_the_first_step_and_never_stops(teachers):
    student = method(teachers)
    for step, total in ((0, 30_000), (2_000, 30_000), (40, 600)):
        at(student, step / total, step)
        assert student.feature_weight_now == pytest.approx(2e-3 * 0.995 ** (30_000 * step / total))
    assert student.feature_weight_now == pytest.approx(8.85e-8, rel=0.01)


@pytest.mark.parametrize("pair", [("tensors", "vm"), ("hash", "tensors")])
def test_dense_tensors_have_no_common_numbers(teachers, pair):
    student = at(method(teachers, *pair), 0.01, step=10)
    assert student.stage == 2
    assert "feature" not in student.losses(batch())


def test_weights_of_the_terms(teachers):
    """By hand, at a point in the last stage, without active learning."""
    student = at(method(teachers, field="mlp", inherit="none", active="none"), 0.5, step=15_000)
    given = batch()
    terms = student.losses(given)
    origin, direction, background, jitter, _ = student.rays_of(given)
    taught = student.teacher.networks[0]
    samples = student.student.march(origin, direction, jitter)
    along = direction[samples.ray]
    f, g = student.student.field.features(samples.x).detach(), taught.field.features(samples.x)
    assert float(terms["density"].detach()) == pytest.approx(2e-3 * float((f - g)[:, 0].norm()), rel=1e-5)
    colour = student.student.field.colour(f, along).detach(), taught.field.colour(g, along)
    assert float(terms["colour"].detach()) == pytest.approx(2e-3 * float((colour[0] - colour[1]).norm()), rel=1e-5)
    with torch.no_grad():
        seen = [each.render(origin, direction, background, jitter)[0].rgb for each in (student.student, taught)]
    assert float(terms["rgb"].detach()) == pytest.approx(float((seen[0] - seen[1]).norm()), rel=1e-4)


def test_what_fits_is_inherited_and_the_encoder_is_not(teachers):
    for pair, blocks in {
        ("hash", "mlp"): ["head", "colour_net"],
        ("mlp", "hash"): ["head", "colour_net"],
        ("hash", "vm"): ["colour_net"],
        ("vm", "mlp"): ["colour_net"],
        ("hash", "hash"): ["head", "colour_net"],
        ("hash", "tensors"): [],
        ("tensors", "mlp"): [],
    }.items():
        student = method(teachers, *pair)
        assert student.inherited == blocks
        taught = student.teacher.networks[0].field.state_dict()
        for name, value in student.student.field.state_dict().items():
            copied = name.partition(".")[0] in blocks
            assert (name in taught and taught[name].shape == value.shape and torch.equal(taught[name], value)) == copied
        assert torch.equal(student.student.grid.occupied, student.teacher.networks[0].grid.occupied)
    assert method(teachers, field="mlp", inherit="none").inherited == []
    frozen = method(teachers, field="mlp", inherit="freeze")
    fixed = {n.split(".")[1] for n, p in frozen.student.named_parameters() if not p.requires_grad}
    assert fixed == {"head", "colour_net"}
    small = Radiance("hash", SIZES["hash"], 1.0, steps=8, resolution=4)
    small.field.head.hidden = torch.nn.Linear(28, 32, bias=False)
    assert inherit_blocks(Radiance("mlp", SIZES["mlp"], 1.0, 8, 4), small) == ["colour_net"]


def test_the_pose_pool_keeps_the_worst_views_and_brings_them_back_turned():
    pool = PosePool(count=20, size=4, share=0.1, pairing="fixed")
    prior = SpherePrior((2.0, 2.0))
    collected = []
    for epoch in range(9):
        for step in range(20 * epoch, 20 * epoch + 20):
            pose = pool.pose(step, prior).clone()
            bad = bool(pose[0, 3] == pool.poses[:, 0, 3].max()) or bool(pose[1, 3] == pool.poses[:, 1, 3].max())
            pool.record(step, torch.tensor(10.0 if bad else 30.0))
            if bad:
                collected.append(pose)
        assert int(pool.filled) == min(4, 2 * max(0, epoch - 3))
        if epoch == 5:
            assert pool.full
            for pose in pool.pool:
                assert any(torch.equal(pose, each) for each in collected)
        if epoch > 6:  # some position of an epoch is that of a hard view, seen under another angle
            places = pool.poses[:, :3, 3]
            again = [p for p in collected if (places - p[:3, 3]).abs().sum(1).min() < 1e-6]
            assert again
    order = [PosePool(20, 0, 0.1, "fixed").number(step) for step in range(20)]
    assert sorted(order) == list(range(20))
    assert order != list(range(20))


def test_the_released_pairing_gives_scores_to_other_views():
    found = []
    for pairing in ("fixed", "as_released"):
        pool = PosePool(count=10, size=2, share=0.1, pairing=pairing)
        pool.pose(0, SpherePrior((2.0, 2.0)))
        for step in range(10):
            pool.record(step, torch.tensor(float(pool.number(step))))
        found.append(pool.scores.tolist())
    assert found[0] == [float(number) for number in range(10)]
    assert found[1] != found[0]


def test_the_ray_pool_fills_and_is_then_overwritten_where_it_was_drawn():
    pool = RayPool(5)
    assert len(pool.slots(2, 0)) == 0
    for step in range(3):
        pool.put(torch.full((2, 6), float(step)), pool.slots(2, step))
    assert pool.full
    assert pool.rays[:, 0].tolist() == [0, 0, 1, 1, 2]
    slots = pool.slots(2, 3)
    pool.put(torch.full((2, 6), 9.0), slots)
    assert set(torch.nonzero(pool.rays[:, 0] == 9).flatten().tolist()) == set(slots.tolist())


def test_hard_rays_come_again(teachers):
    student = at(method(teachers, ray_pool=8, active="ray", inherit="none"), 0.5, step=50)
    given = batch(40)
    for _ in range(2):  # four of forty a step
        assert len(student.rays_of(given)[0]) == 40
        student.losses(given)
    origin, direction, *_, slots = student.rays_of(given)
    assert len(origin) == 44
    torch.testing.assert_close(torch.cat([origin, direction], 1)[40:], student.ray_memory.rays[slots])


def test_a_short_training_comes_nearer_to_the_teacher(teachers):
    quieten()
    seed_everything(0, verbose=False)
    student = method(teachers, field="vm", lr=2e-2, poses=4, ray_pool=40, pose_pool=2, hard_share=0.25)
    data = RandomLike(SPEC, 64, 64)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=40, enable_model_summary=False, limit_val_batches=0, **options)
    x = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def apart():
        return float(
            (student.student.field.features(x) - student.teacher.networks[0].field.features(x)).detach().norm()
        )

    before = apart()
    trainer.fit(student, datamodule=data)
    assert apart() < 0.7 * before
    assert student.ray_memory.full
    assert int(student.pose_memory.filled) > 0


def test_wrong_arguments_and_teachers(teachers):
    with pytest.raises(UserError, match="stage1"):
        PVDAL(teacher="x", stage1=0.5, stage2=0.2)
    with pytest.raises(UserError, match=r"bound 1.0, but the data have bound 2.0: give data.bound 1.0"):
        PVDAL(teacher=Teacher(checkpoint=str(teachers / "hash"))).build_for({**SPEC, "bound": 2.0})
    with pytest.raises(UserError, match="no intact export of a radiance field"):
        PVDAL(teacher=Teacher(checkpoint=str(teachers))).build_for(SPEC)
    with pytest.raises(UserError, match="give it posed images"):
        RadianceField().build_for({"modality": "image"})
    with pytest.raises(UserError, match="field=hsah must be one of hash, mlp, vm, tensors"):
        RadianceField(field="hsah")
