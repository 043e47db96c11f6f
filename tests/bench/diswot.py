"""Does DisWOT's score rank students as distillation does? Kendall's tau, and what the search costs against training.

    python tests/bench/diswot.py [--students 24] [--seeds 2] [--steps 300] [--json FILE]

Students of the space of `diswot_tiny` are distilled for a few steps from `teacher_fmnist_small`, on its logits of 8,000
images without augmentation, and judged on 2,000 images that were held out of the training part. The bound is the 5 %
quantile of tau over bootstrap samples of the students. Scores are of one batch of 64 images, mean over random states.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau
from torch import Tensor

from kdzoo.callbacks import cpu_seconds
from kdzoo.datamodules.fashion_mnist import FashionMNIST
from kdzoo.image.architecture_search import Space, ageing_evolution, every, multiply_adds
from kdzoo.image.diswot import Scorer, relation_score, semantic_score
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.students.build import build
from kdzoo.teachers import sources

SPACE = Space("cnn_{}_{}_{}x{}", ((4, 8, 16), (6, 12, 24), (8, 20, 48), (1, 2)))
BATCH, SCORE_BATCH, INITS, BOOTSTRAPS = 64, 64, 8, 2000


def distil(architecture: str, data: FashionMNIST, taught: Tensor, seed: int, steps: int) -> float:
    """Accuracy, in percent, of a student on the validation part after a short distillation."""
    torch.manual_seed(seed)
    student = build(architecture, data.spec).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    assert data.train_set is not None
    assert data.validation_set is not None
    images, labels = data.train_set.images, data.train_set.labels
    order = torch.cat([torch.randperm(len(images)) for _ in range(1 + steps * BATCH // len(images))])
    for rows in order[: steps * BATCH].split(BATCH):
        logits = student(images[rows].float() / 255)
        loss = 0.1 * labelled_cross_entropy(logits, labels[rows]) + 0.9 * kd(logits, taught[rows], 4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = [student.eval()(part.float() / 255).argmax(1) for part in data.validation_set.images.split(500)]
    return 100 * float((torch.cat(found) == data.validation_set.labels).float().mean())


def tau(scores: list[float], accuracies: list[float]) -> tuple[float, float]:
    """Kendall's tau, and its lower 90 % bootstrap bound over the students."""
    draws = np.random.default_rng(0)
    pairs = np.array([scores, accuracies])
    samples = [pairs[:, draws.integers(0, len(scores), len(scores))] for _ in range(BOOTSTRAPS)]
    found = [kendalltau(*sample).statistic for sample in samples]
    return float(kendalltau(*pairs).statistic), float(np.nanquantile(found, 0.05))


def main() -> int:
    """Run, print, and say whether the bound of the score of `diswot_tiny` is above zero."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = FashionMNIST(validation=2000)
    data.setup()
    assert data.train_set is not None
    sources.prepare(sources.teachers("teacher_fmnist_small"))
    teacher, _ = sources.load(sources.teachers("teacher_fmnist_small"), data.spec)
    images, labels = data.train_set.images, data.train_set.labels
    taught = torch.cat([teacher({"image": part.float() / 255}) for part in images.split(500)])

    begin = cpu_seconds()
    image, label = images[:SCORE_BATCH].float() / 255, labels[:SCORE_BATCH]
    scorer = Scorer(teacher.networks[0].architecture, image, label, data.spec, INITS, "class")
    space = [SPACE.architecture(genes) for genes in every(SPACE.choices)]
    parts: dict[str, dict[str, float]] = {}
    for name in space:
        pairs = list(zip(scorer.traces(name, scorer.seed), scorer.teachers))
        semantic = float(np.mean([float(semantic_score(s[0], t[0], "class")) for s, t in pairs]))
        relation = float(np.mean([float(relation_score(s[1], t[1])) for s, t in pairs]))
        parts[name] = {"sum": semantic + relation, "semantic": semantic, "relation": relation}
    score_seconds = (cpu_seconds() - begin) / len(space)
    costs = {name: multiply_adds(build(name, data.spec), data.spec) for name in space}
    search = ageing_evolution(
        SPACE, lambda n: parts[n]["relation"], costs.__getitem__, None, population=6, tournament=3, cycles=20,
        draws=random.Random(0),
    )  # fmt: skip
    rank = sorted(space, key=lambda name: -parts[name]["relation"]).index(search.best) + 1

    chosen = random.Random(0).sample(space, options.students)
    begin, accuracies = cpu_seconds(), {}
    for name in chosen:
        accuracies[name] = [distil(name, data, taught, seed, options.steps) for seed in range(options.seeds)]
        print(f"{name}  {costs[name]:.2f}M  {parts[name]['sum']:.4f}  {accuracies[name]}", file=sys.stderr, flush=True)
    train_seconds = (cpu_seconds() - begin) / (options.students * options.seeds)

    measured = [float(np.mean(accuracies[name])) for name in chosen]
    rivals: dict[str, list[float]] = {
        kind: [parts[n][kind] for n in chosen] for kind in ("sum", "semantic", "relation")
    }
    rivals["multiply-adds"] = [costs[name] for name in chosen]
    rivals["random"] = random.Random(1).sample(range(len(chosen)), len(chosen))  # type: ignore[assignment]
    taus = {kind: tau(values, measured) for kind, values in rivals.items()}
    table = Table("ranked by", "Kendall tau", "lower 90 % bound", box=None, pad_edge=False)
    for kind, (value, bound) in taus.items():
        table.add_row(kind, f"{value:.3f}", f"{bound:.3f}")
    console = Console(width=100)
    console.print(table)
    short = f"{train_seconds:.1f} s for {options.steps} steps"
    console.print(f"a score costs {score_seconds:.2f} CPU-seconds ({INITS} random states), a distillation {short}")
    looked = f"{len(search.scores)} of {len(space)} architectures"
    console.print(f"evolution found {search.best}, rank {rank} of {len(space)} by score, with {looked} scored")
    passed = {kind: taus[kind][1] > 0 for kind in ("sum", "relation")}  # the paper's score, that of `diswot_tiny`
    for kind, holds in passed.items():
        console.print(f"tau's bound above zero by {kind}: " + ("holds" if holds else "not reached"))
    if options.json:
        record: dict[str, Any] = {"tau": taus, "accuracies": accuracies, "scores": parts, "multiply_adds_m": costs}
        record |= {"score_cpu_seconds": score_seconds, "training_cpu_seconds": train_seconds, "passed": passed}
        options.json.write_text(json.dumps(record, indent=1))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
