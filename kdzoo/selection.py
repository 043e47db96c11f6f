"""Which samples stand for all, by their features: herding, k-center, k-means. Pure functions.

Every choice is of the features [n, D] of one class and gives the rows that are chosen, int64 [count], all different.
Source: herding, Welling, 2009; k-center, Sener and Savarese, arXiv 1708.00489; k-means with the nearest samples, the
baseline of DC-Bench, arXiv 2207.09639.
"""

import torch
from torch import Tensor


def herding(features: Tensor, count: int) -> Tensor:
    """Choose one after the other the sample that brings the mean of the chosen closest to the mean of all."""
    mean = features.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for number in range(count):
        # argmin |mean * (number + 1) - total - f|, without a table of differences
        wanted = mean * (number + 1) - total
        distance = (features**2).sum(1) - 2 * features @ wanted
        row = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(row)
        free[row] = False
        total = total + features[row]
    return torch.tensor(chosen)


def k_center(features: Tensor, count: int) -> Tensor:
    """Choose the sample nearest to the mean, then always the one that is farthest from all that were chosen."""
    row = int(((features - features.mean(0)) ** 2).sum(1).argmin())
    chosen = [row]
    nearest = torch.full((len(features),), torch.inf, device=features.device)
    for _ in range(count - 1):
        nearest = torch.minimum(nearest, ((features - features[row]) ** 2).sum(1))
        nearest[row] = -torch.inf  # never again, also where all others are copies
        row = int(nearest.argmax())
        chosen.append(row)
    return torch.tensor(chosen)


def k_means(features: Tensor, count: int, iterations: int = 100) -> Tensor:
    """Centres [count, D] of Lloyd's algorithm, started by k-means++ from torch's generator.

    A centre that has lost all its points moves to the point that is farthest from its own centre.
    """
    centres = features[torch.randint(len(features), (1,))]
    for _ in range(count - 1):
        distance = torch.cdist(features, centres).min(1).values ** 2
        weights = distance if distance.sum() > 0 else torch.ones_like(distance)
        centres = torch.cat([centres, features[torch.multinomial(weights.cpu(), 1)]])
    assigned = torch.full((len(features),), -1, device=features.device)
    for _ in range(iterations):
        distance, nearest = torch.cdist(features, centres).min(1)
        if torch.equal(nearest, assigned):
            break
        assigned = nearest
        sizes = torch.bincount(assigned, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, assigned, features)
        centres = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        centres[empty] = features[distance.topk(len(empty)).indices]
    return centres


def nearest_to(centres: Tensor, features: Tensor) -> Tensor:
    """Choose the sample nearest to each centre [count, D], one after the other, never a sample twice."""
    distance = torch.cdist(centres, features)  # [count, n]
    chosen = []
    for row in distance:
        best = int(row.argmin())
        chosen.append(best)
        distance[:, best] = torch.inf
    return torch.tensor(chosen)
