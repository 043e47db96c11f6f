"""mae and dmae against their equations, written out."""

import math

import pytest
import timm
import torch
from lightning import Trainer, seed_everything
from safetensors.torch import save_file
from timm.models import VisionTransformer, build_model_with_cfg, register_model
from torch.utils.flop_counter import FlopCounterMode

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.export.image import load_image_network
from kdzoo.mae.dmae import DMAE, block_number, feature_alignment
from kdzoo.mae.encoder import sincos_positions, visible_tokens
from kdzoo.mae.mae import MAE
from kdzoo.mae.pretraining import pixel_targets
from kdzoo.optim import Optim
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher, network_of, untrained_teachers

SPEC = {"modality": "image", "classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
    "index": {"dtype": "int64", "shape": [], "low": 0, "high": 100},
    "view": {"dtype": "int64", "shape": [], "low": 0, "high": 3},
}
TEACHER = Teacher(timm="vit_96x6_patch4_28", weights="none.safetensors")
SMALL = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 3}


@register_model
def vit_registers(pretrained: bool = False, **options) -> VisionTransformer:
    """A transformer with other prefix tokens than the class token."""
    shape = {"img_size": 28, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "reg_tokens": 2}
    return build_model_with_cfg(
        VisionTransformer, "vit_registers", pretrained, **(shape | {"no_embed_class": True} | options)
    )


def built(method, spec=SPEC):
    torch.manual_seed(0)
    with untrained_teachers():
        method.build_for(spec)
    return method.train()


@pytest.fixture
def batch():
    return next(iter(RandomLike(SPEC, samples=4, batch_size=4).train_dataloader()))


def literal_blocks(network, image, visible, blocks):
    """Tokens of each image by itself, all patches embedded with their positions, the visible ones kept."""
    vit, tokens = network.network, []
    for each, ids in zip(image, visible):
        patches = vit.patch_embed((each[None] - network.mean) / network.std)[0]  # [N, D]
        kept = [vit.cls_token[0, 0] + vit.pos_embed[0, 0]]
        kept += [patches[i] + vit.pos_embed[0, 1 + i] for i in ids]
        x = torch.stack(kept)[None]
        for block in list(vit.blocks)[:blocks]:
            x = block(x)
        tokens.append(x[0])
    return torch.stack(tokens)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_pixel_loss_against_a_loop(batch, norm_pix_loss):
    method = built(MAE("vit_48x4_patch4_28", norm_pix_loss=norm_pix_loss, **SMALL))
    visible, masked = method.mask(batch)
    latent = method.vit.norm(literal_blocks(method.student, batch["image"], visible, 4))
    prediction = method.decoder(latent, visible, masked)
    total = 0.0
    for b in range(4):
        for place, number in enumerate(masked[b].tolist()):
            row, column = divmod(number, 7)
            true = (batch["image"][b, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten() - 0.3) / 0.3
            if norm_pix_loss:
                deviation = math.sqrt(float(((true - true.mean()) ** 2).sum()) / 15 + 1e-6)
                true = (true - true.mean()) / deviation
            total += ((prediction[b, place] - true) ** 2).mean()
    assert set(method.losses(batch)) == {"pixel"}
    torch.testing.assert_close(method.losses(batch)["pixel"], total / (4 * 37), rtol=1e-4, atol=1e-5)


def test_the_decoder_does_not_mind_the_order_of_the_patches(batch):
    method = built(MAE("vit_48x4_patch4_28", **SMALL))
    visible, masked = method.mask(batch)
    latent = method.encode(batch["image"], visible)
    turned = torch.cat([latent[:, :1], latent[:, 1:].flip(1)], dim=1)
    expected = method.decoder(latent, visible, masked).flip(1)
    torch.testing.assert_close(method.decoder(turned, visible.flip(1), masked.flip(1)), expected)


def test_the_alignment_against_a_loop(batch):
    method = built(DMAE("vit_48x4_patch4_28", TEACHER, align_weight=0.7, student_tap=1, teacher_tap=3, **SMALL))
    visible, _ = method.mask(batch)
    teacher = method.teacher.networks[0].network
    ours = method.head(literal_blocks(method.student, batch["image"], visible, 2))
    theirs = literal_blocks(teacher, batch["image"], visible, 4)
    total = 0.0
    for b in range(4):
        for token in range(13):
            s, t = ours[b, token], theirs[b, token]
            total += (s / s.norm() - t / t.norm()).abs().sum()
    terms = method.losses(batch)
    assert set(terms) == {"pixel", "align"}
    torch.testing.assert_close(terms["align"], 0.7 * total / (4 * 13 * 96), rtol=1e-4, atol=1e-6)
    same = MAE("vit_48x4_patch4_28", **SMALL)  # the pixel term is MAE's of the same student
    same = built(same)
    same.student.load_state_dict(method.student.state_dict())
    same.decoder.load_state_dict(method.decoder.state_dict())
    torch.testing.assert_close(terms["pixel"], same.losses(batch)["pixel"])


def test_random_directions_are_as_far_apart_as_the_width_says():
    for width in (96, 1024):
        distance = feature_alignment(torch.randn(4, 50, width), torch.randn(4, 50, width))
        assert distance == pytest.approx(2 / math.sqrt(math.pi * width), rel=0.02)  # E |x - y| of N(0, 1 / width)


def test_no_gradient_below_the_alignment_is_lost(batch):
    method = built(DMAE("vit_48x4_patch4_28", TEACHER, **SMALL))
    terms = method.losses(batch)
    terms["align"].backward()
    grads = [any(p.grad is not None for p in block.parameters()) for block in method.vit.blocks]
    assert grads == [True, True, True, False]
    trained = [p for p in method.parameters() if p.requires_grad]
    sum(method.losses(batch).values()).backward()
    assert all(p.grad is not None for p in trained)  # nothing that distributed training would miss


@pytest.mark.parametrize(("tap", "ran"), [(None, 4), (0, 1), (5, 6)])
def test_the_teacher_runs_its_blocks_up_to_the_tap_on_visible_tokens_alone(batch, tap, ran):
    method = built(DMAE("vit_48x4_patch4_28", TEACHER, teacher_tap=tap, **SMALL))
    seen, masks = [], []
    for number, block in enumerate(method.teacher.networks[0].network.network.blocks):
        block.register_forward_hook(lambda _, inputs, __, number=number: seen.append((number, inputs[0].shape[1])))
    method.teacher.networks[0].register_forward_pre_hook(lambda _, inputs: masks.append(inputs[1]))
    ours = []
    method.vit.blocks[0].register_forward_hook(lambda _, inputs, __: ours.append(inputs[0]))
    method.losses(batch)
    assert seen == [(number, 13) for number in range(ran)]  # a class token and 12 of 49 patches
    visible, _ = method.mask(batch)
    assert len(masks) == 1
    assert torch.equal(masks[0], visible)
    assert len(ours) == 1  # the student runs once for both terms, on the same patches
    assert torch.equal(ours[0], visible_tokens(method.student, batch["image"], visible))


def test_the_papers_taps():
    assert [block_number(None, depth, "student") for depth in (12, 24, 6, 4, 1)] == [8, 17, 3, 2, 0]
    for tap in (6, -1):
        with pytest.raises(UserError, match=rf"teacher_tap={tap} is no block of the teacher: its blocks are 0 to 5"):
            built(DMAE("vit_48x4_patch4_28", TEACHER, teacher_tap=tap, **SMALL))


def test_the_teachers_flops(batch):
    """At 75 % masking less than a quarter of its forward pass."""
    method = built(DMAE("vit_48x4_patch4_28", TEACHER, **SMALL))
    teacher = method.teacher.networks[0]
    for block in teacher.network.network.blocks:
        block.attn.fused_attn = False  # what the counter knows how to count
    visible, _ = method.mask(batch)
    flops = []
    for run in (lambda: teacher(batch["image"], visible), lambda: teacher.network(batch["image"])):
        with FlopCounterMode(display=False) as counter:
            run()
        flops.append(counter.get_total_flops())
    assert 0 < flops[0] <= 0.25 * flops[1]


def test_evaluation_masks_do_not_depend_on_the_seed(batch):
    one, two = (built(MAE("vit_48x4_patch4_28", **SMALL)) for _ in range(2))
    one.seed, two.seed = 1, 2
    assert not torch.equal(one.mask(batch)[0], two.mask(batch)[0])
    assert torch.equal(one.eval().mask(batch)[0], two.eval().mask(batch)[0])


def test_positions_against_the_formula_and_fixed():
    positions = sincos_positions((2, 3), 8)
    for row in range(2):
        for column in range(3):
            w = [1.0, 0.01]
            expected = [f(p * each) for p in (column, row) for f in (math.sin, math.cos) for each in w]
            torch.testing.assert_close(positions[3 * row + column], torch.tensor(expected))
    method = built(MAE("vit_48x4_patch4_28", **SMALL))
    assert not method.vit.pos_embed.requires_grad
    assert torch.equal(method.vit.pos_embed[0, 1:], sincos_positions((7, 7), 48))
    assert method.vit.pos_embed[0, 0].abs().sum() == 0
    assert sincos_positions((2, 2), 6)[:, 4:].abs().sum() == 0  # a width that four does not divide


def test_weight_decay_is_of_matrices_alone():
    method = built(
        MAE("vit_48x4_patch4_28", **SMALL, optim=Optim(name="adamw", weight_decay=0.05, schedule="constant"))
    )
    method._total_steps = 10.0
    decayed, spared = method.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    count = len([p for p in method.parameters() if p.requires_grad])
    assert len(decayed["params"]) + len(spared["params"]) == count


def test_the_papers_optimizer():
    for method, warmup in ((MAE("vit_base_patch16_224"), 0.05), (DMAE("vit_base_patch16_224", TEACHER), 0.2)):
        optim = method.optim
        assert (optim.name, optim.lr, optim.weight_decay, optim.betas) == (
            "adamw",
            1.5e-4 * 4096 / 256,
            0.05,
            (0.9, 0.95),
        )
        assert (optim.schedule, optim.warmup) == ("cosine", warmup)
        assert (method.mask_ratio, method.norm_pix_loss) == (0.75, False)
        assert method.decoder_shape == {"width": 512, "depth": 8, "heads": 16}


def test_registers_and_grids_of_other_transformers(batch):
    method = built(MAE("vit_registers", **SMALL))
    assert torch.isfinite(method.losses(batch)["pixel"])
    method = built(DMAE("vit_48x4_patch4_28", Teacher(timm="vit_registers", weights="none.safetensors"), **SMALL))
    assert method.class_token
    assert torch.isfinite(method.losses(batch)["align"])


def test_bad_input():
    odd = {**SPEC, "image_size": [30, 28]}
    with pytest.raises(UserError, match=r"patches of 'vit_48x4_patch4_28' \(4 x 4\) do not divide images of 30 x 28"):
        built(MAE("vit_48x4_patch4_28", **SMALL), odd)
    with pytest.raises(UserError, match="'cnn_14k' is no vision transformer"):
        built(MAE("cnn_14k", **SMALL))
    with pytest.raises(UserError, match="leaves 0 of 49 patches visible"):
        built(MAE("vit_48x4_patch4_28", mask_ratio=0.995, **SMALL))
    with pytest.raises(UserError, match="decoder_heads=5 does not divide decoder_width=24"):
        built(MAE("vit_48x4_patch4_28", decoder_width=24, decoder_depth=1, decoder_heads=5))
    big = {**SPEC, "image_size": [64, 64], "channels": 3, "mean": [0.3] * 3, "std": [0.3] * 3}
    teacher = Teacher(timm="vit_tiny_patch16_224", weights="none.safetensors")
    with pytest.raises(UserError, match=r"has 16 x 16 patches and the teacher 'vit_tiny_patch16_224' 4 x 4"):
        built(DMAE("vit_48x4_patch4_28", teacher, **SMALL), big)
    with pytest.raises(UserError, match="leave store out"):
        DMAE("vit_48x4_patch4_28", Teacher(recipe="teacher_mae_fmnist", store="fp16"))


def trainer(folder, **options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.filterwarnings("ignore")
def test_probes_figures_and_the_export(tmp_path):
    seed_everything(0, verbose=False)
    method, data = MAE("vit_48x4_patch4_28", norm_pix_loss=True, **SMALL), RandomLike(SPEC, samples=24, batch_size=8)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(method, datamodule=data)
    assert set(run.callback_metrics) >= {"val/pixel_loss"}
    scores = run.test(method, datamodule=data, verbose=False)[0]
    assert set(scores) == {"test/pixel_loss", "test/linear_probe", "test/knn"}
    assert all(0 <= scores[name] <= 100 for name in ("test/linear_probe", "test/knn"))
    assert scores == run.test(method, datamodule=data, verbose=False)[0]
    image, hidden, whole = method.pictures
    shown = ~hidden.isnan()
    assert shown.float().mean() == pytest.approx(12 / 49)
    torch.testing.assert_close(hidden[shown], image[shown])
    torch.testing.assert_close(whole[shown], image[shown])
    assert set(method.figures()) == {"Reconstruction"}

    files = method.export(tmp_path / "export", scores)
    assert "model.safetensors" in files
    loaded, config = load_image_network(tmp_path / "export")
    batch = next(iter(data.test_dataloader()))
    method.eval()
    torch.testing.assert_close(loaded.eval()(batch["image"]), method.student(batch["image"]))
    assert config["kdzoo"]["scores"] == scores
    # a run's export teaches, and it is where another pre-training may start
    student = built(DMAE("vit_48x4_patch4_28", Teacher(timm="vit_96x6_patch4_28", weights="none.pth"), **SMALL))
    assert student.summary().endswith("runs 4 of 6 blocks")
    taught = DMAE("vit_48x4_patch4_28", Teacher(checkpoint=str(tmp_path / "export")), **SMALL)
    taught.build_for(SPEC)
    assert torch.isfinite(taught.losses(batch)["align"])
    again = MAE("vit_48x4_patch4_28", weights=str(tmp_path / "export" / "model.safetensors"), **SMALL)
    again.build_for(SPEC)
    assert torch.equal(again.vit.cls_token, method.vit.cls_token)


@pytest.mark.filterwarnings("ignore")
def test_an_export_of_a_timm_architecture_loads_with_timm_alone(tmp_path):
    spec = {**SPEC, "image_size": [64, 64], "channels": 3, "mean": [0.3] * 3, "std": [0.2] * 3}
    method = built(MAE("vit_tiny_patch16_224", **SMALL), spec).eval()
    method.export(tmp_path / "export")
    network = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    image = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network((image - 0.3) / 0.2), method.student(image))


@pytest.mark.parametrize("decoder", [False, True])
def test_public_checkpoints_load(tmp_path, decoder):
    """Files of masked autoencoders: the state dict under `model`, without a head, perhaps with a decoder."""
    spec = {**SPEC, "channels": 3, "image_size": [224, 224], "mean": [0.3] * 3, "std": [0.3] * 3}
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    extra = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)} if decoder else {}
    torch.save({"model": {**state, **extra}}, tmp_path / "mae.pth")
    network = build("vit_tiny_patch16_224", {**spec, "classes": 0}, str(tmp_path / "mae.pth"))
    assert torch.equal(network.network.cls_token, state["cls_token"])
    save_file(state, tmp_path / "mae.safetensors")
    method = MAE("vit_tiny_patch16_224", weights=str(tmp_path / "mae.safetensors"), **SMALL)
    method.build_for(spec)
    assert torch.equal(method.vit.pos_embed, state["pos_embed"])


def test_a_checkpoint_of_a_pretraining_is_a_teacher(tmp_path):
    method = MAE("vit_48x4_patch4_28", **SMALL)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_steps=1, enable_checkpointing=False, **options)
    trainer.fit(method, datamodule=RandomLike(SPEC, samples=4, batch_size=4))
    trainer.save_checkpoint(tmp_path / "mae.ckpt")
    network, _ = network_of(Teacher(checkpoint=str(tmp_path / "mae.ckpt")), SPEC)
    assert network.state_dict().keys() == method.student.state_dict().keys()
    assert torch.equal(network.network.cls_token, method.vit.cls_token)


def test_pixel_targets_of_a_flat_patch_are_finite():
    assert torch.equal(pixel_targets(torch.ones(1, 2, 16), True), torch.zeros(1, 2, 16))
