"""Fine-tuning: learning rates, mixing, erasing and dropped branches against what they are defined to be."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.image.finetune import FineTune
from kdzoo.image.mixing import cut, erase, mix, rand_augment
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}
START = Teacher(timm="vit_48x4_patch4_28", weights="none.safetensors")
PLAIN = {"rand_augment": 0.0, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "drop_path": 0.0}


def built(**options) -> FineTune:
    torch.manual_seed(0)
    method = FineTune(START, **options)
    with untrained_teachers():
        method.build_for(SPEC)
    method._total_steps = 10.0
    return method.train()


@pytest.fixture
def batch():
    batch = next(iter(RandomLike(SPEC, samples=6, batch_size=6).train_dataloader()))
    batch["label"][4:] = -1  # two samples without a label
    return batch


def test_without_mixing_it_is_smoothed_cross_entropy_of_the_labelled(batch):
    method = built(**PLAIN, label_smoothing=0.1)
    expected = cross_entropy(method.student(batch["image"][:4]), batch["label"][:4], label_smoothing=0.1)
    torch.testing.assert_close(method.losses(batch)["ce"], expected)
    batch["label"][:] = -1
    assert method.losses(batch)["ce"] == 0


def test_the_whole_network_trains_each_layer_at_its_rate(batch):
    method = built(layer_decay=0.5)
    names = {id(p): name for name, p in method.student.network.named_parameters()}
    rates = {}
    for group in method.configure_optimizers()["optimizer"].param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = (group["initial_lr"], group["weight_decay"])
    assert rates.keys() == set(names.values())
    assert rates["head.weight"] == (2e-3, 0.05)
    assert rates["head.bias"] == (2e-3, 0.0)
    for block in range(4):  # the head, then the blocks from above, then the patches
        assert rates[f"blocks.{block}.attn.qkv.weight"] == (pytest.approx(2e-3 * 0.5 ** (4 - block)), 0.05)
    assert rates["patch_embed.proj.weight"] == (pytest.approx(2e-3 * 0.5**5), 0.05)
    assert rates["pos_embed"][1] == 0
    method.losses(batch)["ce"].backward()
    assert all(p.grad is not None for p in method.student.parameters())


def test_branches_are_dropped_the_deeper_the_more_often():
    method = built(drop_path=0.3)
    rates = [(block.drop_path1.drop_prob, block.drop_path2.drop_prob) for block in method.student.network.blocks]
    assert rates == [(pytest.approx(0.1 * block),) * 2 for block in range(4)]
    with pytest.raises(UserError, match=r"no transformer blocks .* drop_path to 0"), untrained_teachers():
        FineTune(Teacher(timm="cnn_14k", weights="none.safetensors")).build_for(SPEC)


def test_mixup_is_a_blend_and_cutmix_a_patch():
    torch.manual_seed(0)
    image, target = torch.rand(4, 3, 20, 30), one_hot(torch.arange(4), 5).float()
    for _ in range(20):
        mixed, soft = mix(image, target, mixup=0.8, cutmix=0.0)
        share = soft[0, 0]
        torch.testing.assert_close(mixed, share * image + (1 - share) * image.flip(0))
        mixed, soft = mix(image, target, mixup=0.0, cutmix=1.0)
        share = soft[0, 0]
        own = (mixed == image).all(1)  # [B, H, W]
        assert (own | (mixed == image.flip(0)).all(1)).all()
        torch.testing.assert_close(own[0].float().mean(), share)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert mix(image, target, 0.0, 0.0)[0] is image
    both = [mix(image, target, 0.8, 1.0)[0] for _ in range(40)]
    pasted = [((each == image) | (each == image.flip(0))).all().item() for each in both]
    assert 5 < sum(pasted) < 35
    assert all(0 <= start <= end <= 9 for start, end in (cut(9, 1.0) for _ in range(20)))


def test_erasing_leaves_what_it_does_not_touch():
    torch.manual_seed(0)
    image = torch.full((400, 1, 32, 32), 2.0)
    erased = erase(image, 0.25)
    touched = (erased != 2).flatten(1)
    share = touched.float().mean(1)
    assert (share > 0).float().mean() == pytest.approx(0.25, abs=0.08)
    assert share[share > 0].max() <= 0.4
    assert erased[erased != 2].min() >= 0
    assert erased[erased != 2].max() <= 1
    assert erase(image, 0.0) is image


def test_rand_augment_changes_each_image_by_itself():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16).expand(12, -1, -1, -1)
    changed = rand_augment(image, 0.9)
    assert changed.shape == image.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert len({each.sum().item() for each in changed}) > 6
    assert rand_augment(image[:, :1], 0.9).shape == (12, 1, 16, 16)
    assert rand_augment(image, 0.0) is image


def test_the_run_decides_what_is_mixed():
    image, target = torch.rand(4, 1, 8, 8), one_hot(torch.arange(4), 5).float()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append((mix(image, target, 0.8, 1.0)[0], erase(image, 0.5), rand_augment(image, 0.5)))
    assert all(torch.equal(*pair) for pair in zip(*results))
