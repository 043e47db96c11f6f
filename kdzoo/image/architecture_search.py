"""Search for an architecture by ageing evolution, under a cap on the cost of a forward pass. Nothing is trained here.

Source: Real et al., arXiv 1802.01548, algorithm 1.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from random import Random
from typing import Any

from torch import nn

from kdzoo.errors import UserError
from kdzoo.metrics.flops import flops

Genes = tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """Architectures that are one name with choices in it.

    Args:
        name: a timm name with a `{}` for each choice, such as `cifar_resnet_{}_{}_{}`.
        choices: what may stand in each place.
    """

    name: str = "cifar_resnet_{}_{}_{}"
    choices: tuple[tuple[int, ...], ...] = ((1, 3, 5, 7),) * 3

    def __post_init__(self) -> None:
        if self.name.count("{}") != len(self.choices) or not self.choices or not all(self.choices):
            raise UserError(
                f"The space '{self.name}' needs a list of choices, none of them empty, for each of its "
                f"{self.name.count('{}')} places, and {len(self.choices)} are given."
            )

    def __len__(self) -> int:
        return prod(len(choice) for choice in self.choices)

    def architecture(self, genes: Genes) -> str:
        """The name with these choices, numbers in each list."""
        return self.name.format(*(choice[gene] for choice, gene in zip(self.choices, genes)))

    def any(self, draws: Random) -> Genes:
        """One of them at random."""
        return tuple(draws.randrange(len(choice)) for choice in self.choices)

    def mutate(self, genes: Genes, draws: Random) -> Genes:
        """The same with one other choice."""
        places = [place for place, choice in enumerate(self.choices) if len(choice) > 1]
        if not places:
            return genes
        place = draws.choice(places)
        others = [gene for gene in range(len(self.choices[place])) if gene != genes[place]]
        return (*genes[:place], draws.choice(others), *genes[place + 1 :])


@dataclass
class Found:
    """What a search has found.

    Attributes:
        best: the architecture with the highest score.
        scores: every architecture that was scored.
        costs: multiply-adds of every architecture that was looked at, in millions.
    """

    best: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)


def multiply_adds(network: nn.Module, spec: dict[str, Any]) -> float:
    """Multiply-adds of a forward pass of one image, in millions: what the field's tables call FLOPs."""
    return flops(network, spec) / 2e6


def ageing_evolution(
    space: Space,
    score: Callable[[str], float],
    cost: Callable[[str], float],
    cap: float | None,
    population: int,
    tournament: int,
    cycles: int,
    draws: Random,
) -> Found:
    """Keep a population, let the best of a random few have a child with one mutation, and let the oldest die.

    Children over the cap are not born. An architecture that was scored before is not scored again.

    Args:
        space: where to search.
        score: architecture to a score, higher is better.
        cost: architecture to its cost.
        cap: the largest cost; None: any.
        population: how many live at a time.
        tournament: how many of them, drawn with replacement, a parent is the best of.
        cycles: how many are born in all, the first population among them.
        draws: the random numbers.

    Raises:
        UserError: Nothing in the space keeps to the cap.
    """
    found = Found()

    def fits(genes: Genes) -> bool:
        name = space.architecture(genes)
        if name not in found.costs:
            found.costs[name] = cost(name)
        return cap is None or found.costs[name] <= cap

    def scored(genes: Genes) -> float:
        name = space.architecture(genes)
        if name not in found.scores:
            found.scores[name] = score(name)
        return found.scores[name]

    def admitted(draw: Callable[[], Genes]) -> Genes | None:
        return next((genes for genes in (draw() for _ in range(50)) if fits(genes)), None)

    living: deque[Genes] = deque()
    while len(living) < min(population, cycles):
        genes = admitted(lambda: space.any(draws)) or smallest(space, fits, found, cap)
        scored(genes)
        living.append(genes)
    for _ in range(cycles - len(living)):
        parent = max((draws.choice(living) for _ in range(tournament)), key=scored)
        child = admitted(lambda parent=parent: space.mutate(parent, draws))  # type: ignore[misc]
        if child is None:  # every neighbour is over the cap: the parent lives on
            child = parent
        scored(child)
        living.append(child)
        living.popleft()
    found.best = max(found.scores, key=lambda name: found.scores[name])
    return found


def smallest(space: Space, fits: Callable[[Genes], bool], found: Found, cap: float | None) -> Genes:
    """The first in the order of the choices that keeps to the cap, for spaces of which a random draw seldom does.

    Raises:
        UserError: None does.
    """
    for genes in every(space.choices):
        if fits(genes):
            return genes
    cheapest = min(found.costs, key=lambda name: found.costs[name])
    raise UserError(
        f"None of the {len(space)} architectures of '{space.name}' keeps to flops_cap={cap:g} million multiply-adds: "
        f"the cheapest, {cheapest}, takes {found.costs[cheapest]:.2f}. Raise the cap, or give smaller choices."
    )


def every(choices: Sequence[Sequence[int]]) -> list[Genes]:
    """All combinations of choices, by their numbers."""
    combined: list[Genes] = [()]
    for choice in choices:
        combined = [(*genes, gene) for genes in combined for gene in range(len(choice))]
    return combined
