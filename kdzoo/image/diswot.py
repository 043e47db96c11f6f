"""DisWOT: the student that resembles the untrained teacher is searched for without training, then distilled.

    score(s) = - sum_c ||E(g_s[c]) - E(g_t[c])||_F^2 / (C D)  -  ||G(f_s) - G(f_t)||_F^2 / B^2

Teacher and student are at random weights. g [C, D] is the gradient of one batch's cross-entropy by the classifier's
weight, E the correlations of a class's D channels; f are the maps before pooling, G the samples' similarities, both
with rows of length 1. The score is the mean over `inits` random states. Ageing evolution finds the student with the
highest score under a cap on multiply-adds, which then learns by ordinary distillation,

    loss = ce_weight * CE(z_s, y) + kd_weight * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))
           + semantic_weight * E's distance of the maps' channels + relation_weight * G's distance of the maps

in which the two distances may take part (the paper's distillers; an aligner where the channels differ).
`semantic: class` compares the [C, C] correlations of the classes, for networks whose last widths differ. `score` leaves
one of the two out: the first is of order 1 and differs much between random states, the second is of order 1 / B, so
that the sum goes by the first. On the space of `diswot_tiny` the second alone ranks students as distillation does
(Kendall's tau 0.49 with a lower 90 % bound of 0.27), the sum does not (-0.01): `tests/bench/diswot.py`.
The paper is followed, not its code, whose search never holds children to the cap, leaves the relation out, and has
another measure under the name of this one.
Source: Dong, Li and Wei, DisWOT, CVPR 2023, section 3; population 36 and tournaments of 8 are the authors' code's.
"""

import json
import time
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.card import Card
from kdzoo.console import say
from kdzoo.errors import UserError
from kdzoo.files import write_text
from kdzoo.image.architecture_search import Found, Space, ageing_evolution, multiply_adds
from kdzoo.image.classifier import Classifier
from kdzoo.losses.features import inter_channel_correlation, similarity_preserving
from kdzoo.losses.logits import kd, labelled_cross_entropy
from kdzoo.optim import Optim
from kdzoo.students.aligner import Aligner
from kdzoo.students.build import build, check_name
from kdzoo.students.network import ImageNetwork
from kdzoo.teachers import sources
from kdzoo.teachers.sources import Teachers

CARD = Card(
    title="DisWOT: Student Architecture Search for Distillation WithOut Training",
    year=2023,
    family="image",
    task="image classification",
    teacher="a convolutional classifier",
    student="the best of a search space",
    data="labelled images; one batch for the search",
    code="https://github.com/lliai/DisWOT-CVPR2023",
    tags=("logits", "features", "search"),
)

Semantic = Literal["channel", "class"]
Parts = Literal["sum", "semantic", "relation"]
Trace = tuple[Tensor, Tensor]  # gradient by the classifier's weight [C, D], maps [B, D, H, W]


def trace(network: ImageNetwork, image: Tensor, label: Tensor) -> Trace:
    """What the score compares of a network: the gradient by its classifier's weight, and its maps before pooling.

    Raises:
        UserError: Its classifier is not one linear layer.
    """
    classifier = network.network.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise UserError(f"'{network.architecture}' has no linear classifier, whose gradient is scored: take another.")
    logits, features = network.forward_with(image, ["features"])
    (gradient,) = torch.autograd.grad(cross_entropy(logits, label), classifier.weight)
    return gradient, features["features"].detach()


def semantic_score(student: Tensor, teacher: Tensor, semantic: Semantic = "channel") -> Tensor:
    """Minus the distance of two classifiers' gradients, [C, D_s] and [C, D_t]; see the module.

    Raises:
        UserError: D_s and D_t differ, and the channels are to be compared.
    """
    if semantic == "class":
        return -inter_channel_correlation(student[None], teacher[None])
    if student.shape != teacher.shape:
        raise UserError(
            f"The student's classifier reads {student.shape[1]} channels and the teacher's {teacher.shape[1]}, which "
            "have no channel in common: give semantic: class, or networks of one last width."
        )
    return -inter_channel_correlation(student[..., None], teacher[..., None])


def relation_score(student: Tensor, teacher: Tensor) -> Tensor:
    """Minus the distance of the samples' similarities by maps [B, ...]."""
    return -similarity_preserving(student, teacher)


def diswot_score(student: Trace, teacher: Trace, semantic: Semantic = "channel", parts: Parts = "sum") -> float:
    """The sum of both scores, or one of them."""
    score = 0.0
    if parts != "relation":
        score += float(semantic_score(student[0], teacher[0], semantic))
    if parts != "semantic":
        score += float(relation_score(student[1], teacher[1]))
    return score


class Scorer:
    """Scores architectures against one teacher's, on one batch, as the mean over random states.

    Args:
        teacher: The teacher's architecture.
        image: [B, C, H, W] in [0, 1].
        label: int64 [B], all of them known.
        spec: The spec of the data.
        inits: How many random states.
        semantic: What is compared of the classifiers' gradients.
        parts: Which scores are summed.
    """

    def __init__(
        self,
        teacher: str,
        image: Tensor,
        label: Tensor,
        spec: dict[str, Any],
        inits: int,
        semantic: Semantic,
        parts: Parts = "sum",
    ) -> None:
        self.image, self.label, self.spec = image, label, spec
        self.semantic, self.parts = semantic, parts
        self.seed, self.inits = torch.initial_seed() % 2**31, inits
        self.teachers = self.traces(teacher, self.seed + inits)  # random states of its own

    def traces(self, architecture: str, seed: int) -> list[Trace]:
        """What is compared of an architecture, for each random state."""
        found = []
        for number in range(self.inits):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + number)
                network = build(architecture, self.spec).to(self.image.device).train()
                found.append(trace(network, self.image, self.label))
        return found

    def __call__(self, architecture: str) -> float:
        """The score of an architecture, at most 0."""
        pairs = zip(self.traces(architecture, self.seed), self.teachers)
        return sum(diswot_score(student, teacher, self.semantic, self.parts) for student, teacher in pairs) / self.inits


class DisWOT(Classifier):
    """A student that is searched for, then distilled.

    Args:
        teacher: A recipe's name, a `Teacher`, or several; the search takes the (first one's) architecture alone.
        space: Where the student is searched.
        flops_cap: The student's largest cost, in millions of multiply-adds for an image; None: any.
        population: How many architectures live at a time.
        tournament: How many of them a parent is the best of.
        cycles: How many architectures are born in all.
        inits: How many random states a score is the mean of.
        score_batch: How many labelled images a score is of.
        semantic: Whether gradients are compared by channels (one last width) or by classes.
        score: The sum of both scores, or one of them.
        temperature: T, what the logits are divided by.
        kd_weight: Weight of the teacher's term.
        ce_weight: Weight of the labels' term.
        semantic_weight: Weight of the channels' correlations as a loss.
        relation_weight: Weight of the samples' similarities as a loss.
        optim: The optimizer and its schedule.
    """

    def __init__(
        self,
        teacher: Teachers,
        space: Space = Space(),
        flops_cap: float | None = None,
        population: int = 36,
        tournament: int = 8,
        cycles: int = 1000,
        inits: int = 3,
        score_batch: int = 64,
        semantic: Semantic = "channel",
        score: Parts = "sum",
        temperature: float = 4.0,
        kd_weight: float = 0.9,
        ce_weight: float = 0.1,
        semantic_weight: float = 0.0,
        relation_weight: float = 0.0,
        optim: Optim = Optim(),
    ) -> None:
        super().__init__("", teacher, None, optim)
        self.space = Space(**space) if isinstance(space, dict) else space
        self.flops_cap, self.population, self.tournament, self.cycles = flops_cap, population, tournament, cycles
        self.inits, self.score_batch, self.semantic, self.score = inits, score_batch, semantic, score
        self.temperature, self.kd_weight, self.ce_weight = temperature, kd_weight, ce_weight
        self.semantic_weight, self.relation_weight = semantic_weight, relation_weight
        if min(population, tournament, cycles, inits) < 1 or score_batch < 2:
            raise UserError("population, tournament, cycles and inits must be 1 or more, score_batch 2 or more.")
        for last in (0, -1):
            check_name(self.space.name.format(*(choice[last] for choice in self.space.choices)))
        self.found: Found | None = None

    # ------------------------------------------------------------------------------------------------------- search

    def configure_model(self) -> None:
        """Search first."""
        if self._trainer is not None and self.spec is None and not self.architecture:
            datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            found = self.search(*self.labelled_batch(datamodule), datamodule.spec)
            self.architecture = self.trainer.strategy.broadcast(found)
        super().configure_model()

    def labelled_batch(self, datamodule: Any) -> tuple[Tensor, Tensor]:
        """The first `score_batch` labelled images of the training part, on the run's device, and their labels."""
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in datamodule.train_dataloader():
            batch = datamodule.on_after_batch_transfer(batch, 0)
            known = batch["label"] >= 0
            images.append(batch["image"][known])
            labels.append(batch["label"][known])
            if sum(map(len, labels)) >= self.score_batch:
                break
        image, label = torch.cat(images)[: self.score_batch], torch.cat(labels)[: self.score_batch]
        if len(label) < 2:
            raise UserError("DisWOT scores networks on labelled images, and the training part has fewer than two.")
        device = self.trainer.strategy.root_device
        return image.to(device), label.to(device)

    def search(self, image: Tensor, label: Tensor, spec: dict[str, Any]) -> str:
        """Find the architecture for the student."""
        self.check_data(spec)
        begin = time.perf_counter()
        teacher = sources.network_of(self.teachers[0], spec)[0].architecture
        self.found = ageing_evolution(
            self.space,
            score=Scorer(teacher, image, label, spec, self.inits, self.semantic, self.score),
            cost=lambda name: multiply_adds(build(name, spec), spec),
            cap=self.flops_cap,
            population=self.population,
            tournament=self.tournament,
            cycles=self.cycles,
            draws=Random(torch.initial_seed()),
        )
        best, seconds = self.found.best, time.perf_counter() - begin
        looked = f"{len(self.found.scores)} of {len(self.space)} architectures scored in {seconds:.1f} s"
        say("search", f"{best}: {self.found.scores[best]:.4f}, {self.found.costs[best]:.1f}M multiply-adds; {looked}")
        return best

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was found."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["found"] = self.architecture

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build what the checkpoint has, whatever another search has found."""
        if checkpoint.get("found", self.architecture) != self.architecture:
            self.architecture, self.spec, self.found = checkpoint["found"], None, None
        super().on_load_checkpoint(checkpoint)

    def export(self, folder: Path, scores: dict[str, float] | None = None) -> list[str]:
        """Write the student, and `search.json` with the scores and costs of what this run has looked at."""
        files = super().export(folder, scores)
        if self.found is None:
            return files
        record = {"best": self.found.best, "scores": self.found.scores, "multiply_adds_m": self.found.costs}
        write_text(folder / "search.json", json.dumps(record, indent=1) + "\n")
        return sorted([*files, "search.json"])

    # ------------------------------------------------------------------------------------------------- distillation

    def build(self, spec: dict[str, Any]) -> None:
        """Add the aligner, where the channels' correlations are a loss and their numbers differ."""
        super().build(spec)
        self.aligner: nn.Module = nn.Identity()
        if self.semantic_weight:
            student, teacher = (
                network.tap_shapes(spec, ["features"])["features"] for network in (self.student, self.teacher)
            )
            if student[0] != teacher[0]:
                self.aligner = Aligner(student, teacher)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `ce`, `kd`, and the distances that have a weight."""
        weights = self.semantic_weight, self.relation_weight
        taps = ["features"] if any(weights) else []
        logits, student = self.student.forward_with(batch["image"], taps)  # [B, C]
        taught = self.teacher.features(batch, ["logits", *taps])
        terms = {
            "ce": self.ce_weight * labelled_cross_entropy(logits, batch["label"]),
            "kd": self.kd_weight * kd(logits, taught["logits"], self.temperature),
        }
        if self.semantic_weight:
            maps = self.aligner(student["features"]), taught["features"].float()
            terms["semantic"] = self.semantic_weight * inter_channel_correlation(*maps)
        if self.relation_weight:
            terms["relation"] = self.relation_weight * similarity_preserving(
                student["features"], taught["features"].float()
            )
        return terms
