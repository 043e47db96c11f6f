"""DisWOT: scores against a literal computation, the search, the cap, and the two distances as losses."""

import json
from random import Random

import pytest
import torch
from lightning import Trainer
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.random_like import RandomLike
from kdzoo.errors import UserError
from kdzoo.image.architecture_search import Space, ageing_evolution, every, multiply_adds
from kdzoo.image.diswot import DisWOT, Scorer, diswot_score, relation_score, semantic_score, trace
from kdzoo.losses.features import inter_channel_correlation, similarity_preserving
from kdzoo.losses.logits import kd
from kdzoo.students.build import build
from kdzoo.teachers.sources import Teacher, untrained_teachers

SPEC = {"modality": "image", "classes": 5, "channels": 1, "image_size": [28, 28], "mean": [0.3], "std": [0.3]}
SPEC["keys"] = {
    "image": {"dtype": "float32", "shape": [1, 28, 28], "low": 0.0, "high": 1.0},
    "label": {"dtype": "int64", "shape": [], "low": 0, "high": 5},
}
TEACHER = Teacher(timm="cnn_16_24_48x1", weights="none.safetensors")
SPACE = Space("cnn_{}_{}_{}x{}", ((4, 8, 16), (6, 12, 24), (8, 20, 48), (1, 2)))
SMALL = {"population": 3, "tournament": 2, "cycles": 6, "inits": 2, "score_batch": 8, "semantic": "class"}


@pytest.fixture
def batch():
    return next(iter(RandomLike(SPEC, samples=8, batch_size=8).train_dataloader()))


def unit(row):
    return row / row.norm().clamp(min=1e-12)  # a channel may be silent


def literal_score(student, teacher, image, label):
    """The paper's two distances, entry by entry, with whole backward passes."""
    sides = []
    for network in (student, teacher):
        network.zero_grad()
        maps = []
        keep = lambda _, inputs, __, maps=maps: maps.append(inputs[0])  # noqa: E731
        handle = network.network.global_pool.register_forward_hook(keep)
        cross_entropy(network(image), label).backward()
        handle.remove()
        sides.append((network.network.fc.weight.grad.double(), maps[0].detach().double()))
    (g_s, f_s), (g_t, f_t) = sides
    classes, channels = g_s.shape
    semantic = 0.0
    for c in range(classes):
        for d in range(channels):
            row_s = unit(torch.stack([g_s[c, d] * g_s[c, e] for e in range(channels)]))
            row_t = unit(torch.stack([g_t[c, d] * g_t[c, e] for e in range(channels)]))
            semantic += ((row_s - row_t) ** 2).sum().item()
    relation = 0.0
    samples = len(image)
    for i in range(samples):
        row_s = unit(torch.stack([(f_s[i] * f_s[j]).sum() for j in range(samples)]))
        row_t = unit(torch.stack([(f_t[i] * f_t[j]).sum() for j in range(samples)]))
        relation += ((row_s - row_t) ** 2).sum().item()
    return -semantic / (classes * channels), -relation / samples**2


def test_the_scores_are_the_papers(batch):
    torch.manual_seed(0)
    student, teacher = build("cnn_4_6_48x1", SPEC).train(), build("cnn_16_24_48x1", SPEC).train()
    image, label = batch["image"], batch["label"]
    semantic, relation = literal_score(student, teacher, image, label)
    traces = trace(student, image, label), trace(teacher, image, label)
    assert float(semantic_score(traces[0][0], traces[1][0])) == pytest.approx(semantic, rel=1e-4)
    assert float(relation_score(traces[0][1], traces[1][1])) == pytest.approx(relation, rel=1e-3)
    assert diswot_score(*traces) == pytest.approx(semantic + relation, rel=1e-4)
    assert diswot_score(*traces, parts="semantic") == pytest.approx(semantic, rel=1e-4)
    assert diswot_score(*traces, parts="relation") == pytest.approx(relation, rel=1e-3)
    assert diswot_score(traces[1], traces[1]) == 0


def test_classes_are_compared_where_widths_differ():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 9)
    with pytest.raises(UserError, match=r"reads 7 channels and the teacher's 9.*semantic: class"):
        semantic_score(student, teacher)
    rows = [torch.stack([unit(row) for row in g @ g.T]) for g in (student, teacher)]
    expected = -((rows[0] - rows[1]) ** 2).sum() / 5
    torch.testing.assert_close(semantic_score(student, teacher, "class"), expected)


def test_a_score_is_a_mean_over_random_states_and_leaves_the_generator_alone(batch):
    torch.manual_seed(3)
    image, label = batch["image"], batch["label"]
    state = torch.get_rng_state()
    score = Scorer("cnn_16_24_48x1", image, label, SPEC, 3, "channel")("cnn_4_6_48x1")
    assert torch.equal(state, torch.get_rng_state())
    singles = []
    for number in range(3):
        sides = []
        for seed, name in (3 + number, "cnn_4_6_48x1"), (6 + number, "cnn_16_24_48x1"):
            torch.manual_seed(seed)
            sides.append(trace(build(name, SPEC).train(), image, label))
        singles.append(diswot_score(*sides))
    assert score == pytest.approx(sum(singles) / 3)
    assert len(set(singles)) == 3


def test_a_head_that_is_not_linear_is_refused(batch):
    network = build("cnn_14k", SPEC)
    network.network.fc = torch.nn.Sequential(network.network.fc)
    with pytest.raises(UserError, match="'cnn_14k' has no linear classifier, whose gradient is scored"):
        trace(network, batch["image"], batch["label"])


# ------------------------------------------------------------------------------------------------------------- search


def ranked(name: str) -> float:
    """A score with one summit: the largest digits."""
    return sum(float(part) for part in name.replace("x", "_").split("_")[1:])


def search(**options):
    defaults = {"cap": None, "population": 6, "tournament": 3, "cycles": 30, "draws": Random(0)}
    return ageing_evolution(SPACE, ranked, lambda name: float(name.split("_")[1]), **{**defaults, **options})


def test_evolution_finds_the_best_without_scoring_all():
    places = []
    for seed in range(10):
        found = search(draws=Random(seed), cycles=25)
        assert len(found.scores) <= 25
        assert found.best == max(found.scores, key=found.scores.get)
        best = sorted((ranked(SPACE.architecture(genes)) for genes in every(SPACE.choices)), reverse=True)
        places.append(best.index(found.scores[found.best]))
    assert max(places) <= 13  # of 54: the upper quarter, in every run
    assert len(SPACE) == len(set(map(SPACE.architecture, every(SPACE.choices)))) == 54


def test_the_oldest_dies_and_only_the_best_of_a_few_has_children():
    """Replayed by hand with the same random numbers."""
    found = search(cycles=20)
    draws, living, seen = Random(0), [], []
    for _ in range(6):
        living.append(SPACE.any(draws))
        seen.append(living[-1])
    for _ in range(14):
        few = [draws.choice(living) for _ in range(3)]
        child = SPACE.mutate(max(few, key=lambda genes: ranked(SPACE.architecture(genes))), draws)
        living = [*living[1:], child]
        seen.append(child)
    assert list(found.scores) == list(dict.fromkeys(map(SPACE.architecture, seen)))


def test_a_mutation_is_one_other_choice():
    draws = Random(0)
    for _ in range(50):
        genes = SPACE.any(draws)
        child = SPACE.mutate(genes, draws)
        assert sum(a != b for a, b in zip(genes, child)) == 1
        assert all(gene < len(choice) for gene, choice in zip(child, SPACE.choices))
    assert Space("a{}", ((3,),)).mutate((0,), draws) == (0,)


def test_nobody_over_the_cap_is_scored():
    found = search(cap=8.0)
    assert {name.split("_")[1] for name in found.scores} == {"4", "8"}
    assert max(found.costs.values()) == 16
    only = ageing_evolution(
        SPACE, ranked, lambda name: 1.0 if name == "cnn_8_12_20x2" else 9.0, 2.0, 4, 2, 12, Random(0)
    )
    assert list(only.scores) == [only.best] == ["cnn_8_12_20x2"]


def test_a_cap_that_nobody_meets_is_one_sentence(batch):
    message = (
        r"None of the 54 architectures of 'cnn_\{\}_\{\}_\{\}x\{\}' keeps to flops_cap=0.01 million multiply-adds: "
        r"the cheapest, cnn_4_6_8x1, takes \d\.\d\d\. Raise the cap, or give smaller choices\."
    )
    method = DisWOT(TEACHER, SPACE, flops_cap=0.01, **SMALL)
    with untrained_teachers(), pytest.raises(UserError, match=message):
        method.search(batch["image"], batch["label"], SPEC)


def test_a_space_needs_choices_for_each_place():
    with pytest.raises(UserError, match=r"a list of choices, none of them empty, for each of its 2 places, and 1"):
        Space("cnn_{}_{}", ((1, 2),))
    with pytest.raises(UserError, match="no network named 'cnn_1'"):
        DisWOT(TEACHER, Space("cnn_{}", ((1,),)))
    with pytest.raises(UserError, match="must be 1 or more"):
        DisWOT(TEACHER, SPACE, cycles=0)


def test_multiply_adds():
    network = build("cnn_14k", SPEC).train()
    seen = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(
                lambda m, _, out: seen.append(m.weight.numel() * (out[0, 0].numel() if out.dim() == 4 else 1))
            )
    found = multiply_adds(network, SPEC)
    assert found == pytest.approx(sum(seen) / 1e6)
    assert network.training


def test_the_spaces_of_the_papers_are_networks():
    spec = {**SPEC, "channels": 3, "image_size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "classes": 100}
    same = sum(p.numel() for p in build("cifar_resnet_3_3_3", spec).parameters())
    assert same == sum(p.numel() for p in build("cifar_resnet20", spec).parameters()) == 278_324
    assert len(Space()) == 64
    for genes in ((0, 0, 0), (3, 1, 2), (3, 3, 3)):
        build(Space().architecture(genes), spec)


# ------------------------------------------------------------------------------------------------------- distillation


def built(**options):
    method = DisWOT(TEACHER, SPACE, **SMALL, **options)
    method.architecture = "cnn_4_6_48x1"
    with untrained_teachers():
        method.build_for(SPEC)
    return method.eval()


def test_both_distances_are_losses(batch):
    method = built(semantic_weight=2.0, relation_weight=3.0)
    student = method.student.features(batch["image"], ["features"])["features"]
    teacher = method.teacher.features(batch, ["features"])["features"]
    terms = method.losses(batch)
    torch.testing.assert_close(terms["semantic"], 2 * inter_channel_correlation(student, teacher))
    torch.testing.assert_close(terms["relation"], 3 * similarity_preserving(student, teacher))
    logits = method.student(batch["image"])
    torch.testing.assert_close(terms["kd"], 0.9 * kd(logits, method.teacher(batch), 4.0))
    torch.testing.assert_close(terms["ce"], 0.1 * cross_entropy(logits, batch["label"]))
    assert set(built().losses(batch)) == {"ce", "kd"}
    expected = 0.0
    for s, t in zip(student.flatten(2), teacher.flatten(2)):
        rows = [torch.stack([unit(row) for row in f @ f.T]) for f in (s, t)]
        expected += ((rows[0] - rows[1]) ** 2).sum() / (48 * 8)
    torch.testing.assert_close(inter_channel_correlation(student, teacher), expected, rtol=1e-3, atol=1e-5)


def test_channels_are_aligned_where_their_numbers_differ(batch):
    method = DisWOT(TEACHER, Space("cnn_{}k", ((14, 46),)), semantic_weight=1.0, **SMALL)
    method.architecture = "cnn_14k"
    with untrained_teachers():
        method.build_for(SPEC)
    assert method.aligner.map.weight.shape == (48, 40, 1, 1)
    method.losses(batch)["semantic"].backward()
    assert method.aligner.map.weight.grad.abs().sum() > 0


def test_a_run_searches_exports_and_resumes_what_it_has_found(tmp_path, monkeypatch):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    torch.manual_seed(0)
    with untrained_teachers():
        method = DisWOT(TEACHER, SPACE, **SMALL)
        trainer = Trainer(max_steps=1, accelerator="cpu", **quiet)
        trainer.fit(method, datamodule=RandomLike(SPEC, 8, 8))
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        method.export(tmp_path / "export")
        record = json.loads((tmp_path / "export" / "search.json").read_text())
        assert record["best"] == method.architecture == method.student.architecture
        assert record["scores"][method.architecture] == max(record["scores"].values())

        other = next(name for name in record["scores"] if name != record["best"])
        monkeypatch.setattr(DisWOT, "search", lambda *_: other)
        again = DisWOT(TEACHER, SPACE, **SMALL)
        Trainer(max_steps=2, accelerator="cpu", **quiet).fit(
            again, datamodule=RandomLike(SPEC, 8, 8), ckpt_path=tmp_path / "run.ckpt", weights_only=True
        )
        assert again.architecture == method.architecture
        loaded = DisWOT.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
        assert loaded.student.architecture == method.architecture


def test_unlabelled_data_cannot_be_scored():
    data = RandomLike(SPEC, 4, 4)
    loader = data.train_dataloader()
    for sample in loader.dataset:
        sample["label"] = torch.tensor(-1)
    data.train_dataloader = lambda: loader
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    with untrained_teachers(), pytest.raises(UserError, match="the training part has fewer than two"):
        Trainer(max_steps=1, accelerator="cpu", **quiet).fit(DisWOT(TEACHER, SPACE, **SMALL), datamodule=data)
