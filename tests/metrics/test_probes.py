"""Probes against a literal vote and against the conditions of an optimum."""

import torch
from torch.nn.functional import cross_entropy

from kdzoo.metrics.probes import knn, linear_probe


def clouds(n: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes around centres that no scale or shift tells apart."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3
    centres = torch.tensor([[3.0, 0.0, 100.0], [-3.0, 0.0, 100.0], [0.0, 3.0, 100.0]])
    return centres[label] + spread * torch.randn(n, 3, generator=generator), label


def test_separable_classes_are_told_apart():
    train, label = clouds(300, 0.3, 0)
    test, truth = clouds(90, 0.3, 1)
    assert torch.equal(linear_probe(train, label, test, 3), truth)
    centred = train - train.mean(0), test - train.mean(0)  # directions mean something only around the centre
    assert torch.equal(knn(centred[0], label, centred[1], 3), truth)


def test_the_linear_probe_is_the_optimum_of_its_objective():
    train, label = clouds(400, 3.0, 0)
    test, _ = clouds(200, 3.0, 1)
    mean, std = train.mean(0), train.std(0, correction=0)
    x, z = (torch.cat([(f - mean) / std, torch.ones(len(f), 1)], dim=1).double() for f in (train, test))
    weights = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.5)
    for _ in range(3000):
        optimizer.zero_grad()
        (cross_entropy(x @ weights, label) + 5e-5 * (weights[:3] ** 2).sum()).backward()
        optimizer.step()
    agreed = (linear_probe(train, label, test, 3) == (z @ weights).argmax(1)).float().mean()
    assert agreed >= 0.99


def test_knn_against_a_loop():
    train, label = clouds(50, 4.0, 0)
    test, _ = clouds(20, 4.0, 1)
    train, test = train - 50, test - 50
    for row, predicted in zip(test, knn(train, label, test, 3, neighbours=7, temperature=0.5).tolist()):
        similarity = [float(row @ other / row.norm() / other.norm()) for other in train]
        nearest = sorted(range(50), key=lambda i: -similarity[i])[:7]
        votes = [0.0, 0.0, 0.0]
        for i in nearest:
            votes[label[i]] += torch.tensor(similarity[i] / 0.5).exp().item()
        assert predicted == votes.index(max(votes))


def test_few_samples_and_chunks(monkeypatch):
    train, label = clouds(6, 0.3, 0)
    assert len(knn(train, label, train[:2], 3)) == 2
    whole = linear_probe(train, label, train, 3)
    monkeypatch.setattr("kdzoo.metrics.probes.CHUNK", 4)
    assert torch.equal(linear_probe(train, label, train, 3), whole)
