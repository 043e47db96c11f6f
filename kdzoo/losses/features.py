"""Losses between a student's and a teacher's features: pure functions, tensors in, a scalar out.

Maps of different height and width are compared at the smaller size, to which the larger one is averaged. Losses that
compare the samples of a batch with each other are those of the batch that they are given.
"""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, mse_loss, normalize, smooth_l1_loss

from kdzoo.errors import UserError


def hint(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """The hint loss of FitNets: the mean squared difference. Source: arXiv 1412.6550, eq. 3 (there a sum, halved).

    Args:
        student_feature: any shape, after the regressor.
        teacher_feature: the same shape.

    Returns:
        A scalar, at least 0.
    """
    return mse_loss(student_feature, teacher_feature)


def attention_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of attention maps: the mean square over channels, flat, of length 1.

    Source: arXiv 1612.03928, eq. 2 with p = 2; there a norm, here the mean of squares as in later code.

    Args:
        student_map: [B, C_s, H, W].
        teacher_map: [B, C_t, H', W'].

    Returns:
        A scalar, at least 0.
    """
    student, teacher = (normalize(f.square().mean(1).flatten(1), dim=1) for f in one_size(student_map, teacher_map))
    return mse_loss(student, teacher)


def similarity_preserving(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """`||G_s - G_t||_F^2 / B^2`, G the samples' inner products with rows of length 1. Source: arXiv 1907.09682, eq. 4.

    Args:
        student_feature: [B, ...], B >= 2.
        teacher_feature: [B, ...], of another shape perhaps.

    Returns:
        A scalar, at least 0.

    Raises:
        UserError: B = 1.
    """
    _need_pairs(student_feature, "sp")
    student, teacher = student_feature.flatten(1), teacher_feature.flatten(1)
    return mse_loss(normalize(student @ student.T, dim=1), normalize(teacher @ teacher.T, dim=1))


def inter_channel_correlation(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """`sum_b ||E_s - E_t||_F^2 / (B C)`, E the inner products of a sample's channels [C, C] with rows of length 1.

    Source: DisWOT (CVPR 2023), section 3.2 and its code, after ICKD.

    Args:
        student_feature: [B, C, ...].
        teacher_feature: [B, C, ...], of another height and width perhaps.

    Returns:
        A scalar, at least 0.
    """
    student, teacher = student_feature.flatten(2), teacher_feature.flatten(2)
    difference = normalize(student @ student.mT, dim=2) - normalize(teacher @ teacher.mT, dim=2)  # [B, C, C]
    return difference.square().sum() / (student.shape[0] * student.shape[1])


def relational_distance(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """RKD-D: Huber loss of the samples' distances, each side's in units of its mean. Source: arXiv 1904.05068, eq. 4-7.

    Args:
        student_feature: [B, D_s], B >= 2.
        teacher_feature: [B, D_t].

    Returns:
        A scalar, at least 0.

    Raises:
        UserError: B = 1.
    """
    _need_pairs(student_feature, "rkd")
    return smooth_l1_loss(_distances(student_feature), _distances(teacher_feature))


def relational_angle(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """RKD-A: Huber loss of the cosines of the angles in all triples of samples. Source: arXiv 1904.05068, eq. 8-10.

    Takes memory of B^3.

    Args:
        student_feature: [B, D_s], B >= 2.
        teacher_feature: [B, D_t].

    Returns:
        A scalar, at least 0.

    Raises:
        UserError: B = 1.
    """
    _need_pairs(student_feature, "rkd")
    return smooth_l1_loss(_angles(student_feature), _angles(teacher_feature))


def probabilistic_transfer(student_feature: Tensor, teacher_feature: Tensor, eps: float = 1e-7) -> Tensor:
    """PKT: how the distributions over the batch differ that cosine similarities make, mean over B^2 entries.

    Source: arXiv 1803.10837, eq. 5, 6, 8; the mean, where the paper has a sum, is the authors' code's.

    Args:
        student_feature: [B, D_s].
        teacher_feature: [B, D_t].
        eps: Added to the probabilities.

    Returns:
        A scalar, at least 0 but for `eps`.

    Raises:
        UserError: B = 1.
    """
    _need_pairs(student_feature, "pkt")
    student, teacher = _neighbours(student_feature), _neighbours(teacher_feature)
    return (teacher * ((teacher + eps).log() - (student + eps).log())).mean()


def neuron_selectivity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """NST: squared maximum mean discrepancy of channels, flat and of length 1, with the kernel (x . y)^2.

    Source: arXiv 1707.01219, eq. 5 with the polynomial kernel of degree 2 and offset 0.

    Args:
        student_map: [B, C_s, H, W].
        teacher_map: [B, C_t, H', W'].

    Returns:
        A scalar, at least 0.
    """
    student, teacher = (normalize(f.flatten(2), dim=2) for f in one_size(student_map, teacher_map))

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.mT).square().mean()  # over [B, C, C']

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def gaussian_nll(mean: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """VID: `0.5 ((mean - target)^2 / variance + log variance)`, mean over elements. Source: arXiv 1904.05835, eq. 4-5.

    Args:
        mean: the student's guess of the teacher's feature, any shape.
        target: the teacher's feature, the same shape.
        variance: broadcasts against both, positive.

    Returns:
        A scalar.
    """
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


def hierarchical_context(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """HCL of ReviewKD: squared differences of whole maps and of their averages on grids of 4, 2 and 1.

    The levels weigh 1, 1/2, 1/4, 1/8, divided by their sum; grids not smaller than the map are left out.
    Source: arXiv 2104.09044, section 3.4, with the authors' code's weights.

    Args:
        student_map: [B, C, H, W].
        teacher_map: the same shape.

    Returns:
        A scalar, at least 0.
    """
    total, weight, weights = mse_loss(student_map, teacher_map), 1.0, 1.0
    for grid in (4, 2, 1):
        if grid < student_map.shape[2]:
            weight /= 2
            weights += weight
            student, teacher = adaptive_avg_pool2d(student_map, grid), adaptive_avg_pool2d(teacher_map, grid)
            total = total + weight * mse_loss(student, teacher)
    return total / weights


def class_attention(student_cam: Tensor, teacher_cam: Tensor, grid: int = 2) -> Tensor:
    """CAT-KD: mean squared difference of class activation maps, averaged to a grid, of length 1 for each class.

    Source: Guo et al., CVPR 2023, eq. 4-5.

    Args:
        student_cam: [B, classes, H, W].
        teacher_cam: [B, classes, H', W'].
        grid: Height and width at which they are compared.

    Returns:
        A scalar, at least 0.
    """
    student, teacher = (
        normalize(adaptive_avg_pool2d(cam, grid).flatten(2), dim=2) for cam in (student_cam, teacher_cam)
    )
    return mse_loss(student, teacher)


def noise_contrast(scores: Tensor, samples: int, eps: float = 1e-7) -> Tensor:
    """CRD's objective: is a pair of the joint distribution (first column) or of the product of the marginals?

    Source: arXiv 1910.10699, eq. 18 of its appendix: h = p / (p + K / N).

    Args:
        scores: normalised exp(similarity / tau), [B, 1 + K]: the positive, then K negatives.
        samples: N, size of the training set.
        eps: Added to denominators.

    Returns:
        A scalar, at least 0: sum over the pairs, mean over the batch.
    """
    noise = (scores.shape[1] - 1) / samples
    positive = (scores[:, 0] / (scores[:, 0] + noise + eps)).log()
    negative = (noise / (scores[:, 1:] + noise + eps)).log().sum(1)
    return -(positive + negative).mean()


def one_size(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, C, H, W] at the smaller height and width of the two."""
    height, width = (min(student_map.shape[i], teacher_map.shape[i]) for i in (2, 3))
    size = (height, width)
    return adaptive_avg_pool2d(student_map, size), adaptive_avg_pool2d(teacher_map, size)


def _need_pairs(feature: Tensor, method: str) -> None:
    if len(feature) < 2:
        raise UserError(f"{method} compares the samples of a batch, and this one has a single sample: batch_size >= 2.")


def _distances(feature: Tensor) -> Tensor:
    """[B, B] in units of the mean over different samples."""
    squares = (feature[None] - feature[:, None]).square().sum(2)  # exact where samples are close, unlike by products
    distance = squares.clamp(min=1e-12).sqrt() * (squares > 0)
    return distance / distance[distance > 0].mean()


def _angles(feature: Tensor) -> Tensor:
    """Cosine at sample i between the directions to j and k: [B, B, B]."""
    direction = normalize(feature[None] - feature[:, None], dim=2)  # [B, B, D]
    return direction @ direction.mT


def _neighbours(feature: Tensor) -> Tensor:
    """Cosine similarities in [0, 1], each row divided by its sum: [B, B]."""
    unit = normalize(feature.flatten(1), dim=1)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)
