"""How good frozen features are: a linear classifier on them, and their nearest neighbours. Deterministic, no tuning."""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize, one_hot

CHUNK = 8192  # rows at a time


def linear_probe(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, penalty: float = 1e-4, iterations: int = 200
) -> Tensor:
    """Predict with softmax regression on standardised features.

    It minimises CE + penalty / 2 * |W|^2 by L-BFGS. The field's SGD with batch normalisation without scale and shift
    is the same model with the same standardisation; solved to the end, it has no learning rate to choose.

    Args:
        train: features [N, D].
        labels: int64 [N], 0 ... classes - 1.
        test: features [M, D].
        classes: C.
        penalty: weight of the penalty; biases have none.
        iterations: most iterations of L-BFGS.

    Returns:
        Predicted classes, int64 [M].
    """
    mean, std = train.mean(0), train.std(0, correction=0) + 1e-6
    ones = torch.ones(1, device=train.device)

    def rows(features: Tensor) -> Tensor:
        return torch.cat([(features - mean) / std, ones.expand(len(features), 1)], dim=1)  # [n, D + 1]

    shape = (train.shape[1] + 1, classes)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat).to(train).view(shape)
        penalised = weights * (torch.arange(shape[0], device=train.device)[:, None] < shape[0] - 1)
        loss, gradient = penalty / 2 * float((penalised**2).sum()), penalty * penalised
        for features, label in zip(train.split(CHUNK), labels.split(CHUNK)):
            x = rows(features)
            log_p = (x @ weights).log_softmax(1)
            loss -= float(log_p.gather(1, label[:, None]).sum()) / len(train)
            gradient = gradient + x.T @ (log_p.exp() - one_hot(label, classes)) / len(train)
        return loss, gradient.double().cpu().numpy().ravel()

    found = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    weights = torch.from_numpy(found.x).to(train).view(shape)
    return torch.cat([(rows(features) @ weights).argmax(1) for features in test.split(CHUNK)])


def knn(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Predict by the votes of the nearest neighbours in cosine similarity s, each weighing exp(s / temperature).

    The protocol of arXiv 1805.01978 with the number of neighbours that arXiv 2104.14294 found best.

    Args:
        train: features [N, D].
        labels: int64 [N], 0 ... classes - 1.
        test: features [M, D].
        classes: C.
        neighbours: how many vote; all if there are fewer.
        temperature: what similarities are divided by.

    Returns:
        Predicted classes, int64 [M].
    """
    known = normalize(train, dim=1)
    predicted = []
    for features in normalize(test, dim=1).split(max(1, CHUNK * 1000 // len(train))):
        similarity, nearest = (features @ known.T).topk(min(neighbours, len(known)), dim=1)  # [n, k]
        votes = torch.zeros(len(features), classes, device=train.device)
        predicted.append(votes.scatter_add(1, labels[nearest], (similarity / temperature).exp()).argmax(1))
    return torch.cat(predicted)
