"""How much of a synthetic set's score is the set's own merit: LRS and ARS of DD-Ranking (PyPI `ddranking` 0.2.0).

All accuracies are in percent. A recipe is everything but the images: labels' kind, loss, augmentation, optimizer.
"""

import math


def lrs(synthetic: float, random: float, synthetic_hard: float, real: float, weight: float = 0.5) -> float:
    """Label-robust score: how far the set beats random images, and falls short of all real ones with plain labels.

        a = w * IOR - (1 - w) * HLR,   IOR = synthetic - random,   HLR = real - synthetic_hard

    Args:
        synthetic: Accuracy of the set by its own recipe and labels.
        random: Accuracy of as many random real images by the same recipe.
        synthetic_hard: Accuracy of the set with hard labels.
        real: Accuracy of all real images with hard labels.
        weight: w, in [0, 1].

    Returns:
        (e^a - e^-1) / (e - e^-1) in percent, with a in [-1, 1].
    """
    return _share(weight * (synthetic - random) - (1 - weight) * (real - synthetic_hard))


def ars(augmented: tuple[float, float], plain: tuple[float, float], weight: float = 0.5) -> float:
    """Augmentation-robust score: how far the set beats random images, with augmentation and without.

        b = g * (synthetic_augmented - random_augmented) + (1 - g) * (synthetic_plain - random_plain)

    Args:
        augmented: Accuracies of the set, and of as many random real images, by a recipe with augmentation.
        plain: The same without augmentation.
        weight: g, in [0, 1].

    Returns:
        (e^b - e^-1) / (e - e^-1) in percent, with b in [-1, 1].
    """
    return _share(weight * (augmented[0] - augmented[1]) + (1 - weight) * (plain[0] - plain[1]))


def _share(percent: float) -> float:
    return 100 * (math.exp(percent / 100) - math.exp(-1)) / (math.e - math.exp(-1))
