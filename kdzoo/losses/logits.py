"""Losses between a student's and a teacher's logits: pure functions, tensors in, a scalar out.

Half-precision logits are compared in float32, other types in their own. No gradient is stopped here: the teacher's
logits come without one. Where a loss needs the true class, a label of -1 (unknown) means the teacher's first choice.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, one_hot

from kdzoo.errors import UserError


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Classical distillation: `T^2 KL(softmax(z_t / T) || softmax(z_s / T))`, mean over the batch.

    Source: arXiv 1503.02531, section 2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T > 0.

    Returns:
        A scalar, at least 0.
    """
    log_student = log_softmax(_precise(student_logits) / temperature, dim=1)  # [B, C]
    log_teacher = log_softmax(_precise(teacher_logits) / temperature, dim=1)  # [B, C]
    return temperature**2 * kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def symmetric_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Half of Jeffreys' divergence, `(KL(p_t || p_s) + KL(p_s || p_t)) / 2`, mean over the batch.

    Source: the code of arXiv 2103.05959, which calls it the JS divergence.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].

    Returns:
        A scalar, at least 0.
    """
    return (kd(student_logits, teacher_logits, 1.0) + kd(teacher_logits, student_logits, 1.0)) / 2


def jensen_shannon(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The JS divergence proper, `(KL(p_t || m) + KL(p_s || m)) / 2` with the mean distribution m, mean over the batch.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].

    Returns:
        A scalar in [0, log 2].
    """
    both = torch.stack([log_softmax(_precise(logits), dim=1) for logits in (student_logits, teacher_logits)])
    middle = both.logsumexp(0) - math.log(2)  # [B, C]
    return (both.exp() * (both - middle)).sum((0, 2)).mean() / 2


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
    temperature: float,
) -> Tensor:
    """Decoupled distillation: `T^2 (alpha TCKD + beta NCKD)`, mean over the batch.

    TCKD compares the probability of the true class against all others, NCKD the distribution among the others. With
    alpha = 1 and beta = 1 - p_t(y) it equals `kd` (p_t at this temperature). Source: arXiv 2203.08679, eq. 5-7.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C].
        label: int64 [B], 0 <= label < C, or -1.
        alpha: weight of TCKD, one for all or [B].
        beta: weight of NCKD, one for all or [B].
        temperature: T > 0.

    Returns:
        A scalar.
    """
    label = _known(label, teacher_logits)
    target_student, others_student = _split(log_softmax(_precise(student_logits) / temperature, dim=1), label)
    target_teacher, others_teacher = _split(log_softmax(_precise(teacher_logits) / temperature, dim=1), label)
    rest_student = others_student.logsumexp(dim=1)  # [B]: log of the probability of all other classes together
    rest_teacher = others_teacher.logsumexp(dim=1)
    tckd = target_teacher.exp() * (target_teacher - target_student) + rest_teacher.exp() * (rest_teacher - rest_student)
    among_student = log_softmax(others_student, dim=1)  # [B, C - 1], again a distribution
    among_teacher = log_softmax(others_teacher, dim=1)
    nckd = (among_teacher.exp() * (among_teacher - among_student)).sum(dim=1)
    return temperature**2 * (alpha * tckd + beta * nckd).mean()


def normalized_kd(
    student_logits: Tensor, teacher_logits: Tensor, label: Tensor, gamma: float, temperature: float
) -> Tensor:
    """Normalized distillation: `-p_t[y] log p_s[y] - gamma T^2 sum_{i != y} q_t[i] log q_s[i]`, mean over the batch.

    p is the softmax at temperature 1, q the softmax over the other classes alone at temperature T. Source: arXiv
    2303.13005, eq. 8 and the authors' code.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C].
        label: int64 [B], 0 <= label < C, or -1.
        gamma: weight of the second term.
        temperature: T > 0 of the second term.

    Returns:
        A scalar, at least 0.
    """
    student, teacher = _precise(student_logits), _precise(teacher_logits)
    label = _known(label, teacher)
    target_student, _ = _split(log_softmax(student, dim=1), label)
    target_teacher, _ = _split(log_softmax(teacher, dim=1), label)
    target = -target_teacher.exp() * target_student  # [B]
    _, others_student = _split(student, label)
    _, others_teacher = _split(teacher, label)
    # [B]: cross_entropy takes class probabilities as its target
    others = cross_entropy(
        others_student / temperature, (others_teacher / temperature).softmax(dim=1), reduction="none"
    )
    return (target + gamma * temperature**2 * others).mean()


def relational_kd(
    student_logits: Tensor, teacher_logits: Tensor, beta: float, gamma: float, temperature: float
) -> Tensor:
    """DIST: `T^2 (beta inter + gamma intra)`, one minus a mean Pearson correlation each, of probabilities at T.

    inter correlates the classes of a sample, intra the samples of the batch for a class. Source: arXiv 2205.10536,
    eq. 8-11; the factor T^2 is the authors' code's.

    Args:
        student_logits: [B, C], C >= 2.
        teacher_logits: [B, C].
        beta: weight of inter.
        gamma: weight of intra.
        temperature: T > 0.

    Returns:
        A scalar in [0, 2 T^2 (beta + gamma)].

    Raises:
        UserError: B = 1: one sample has no correlation over the batch.
    """
    if len(student_logits) < 2:
        raise UserError("dist correlates the samples of a batch, and this one has a single sample: batch_size >= 2.")
    student = (_precise(student_logits) / temperature).softmax(1)
    teacher = (_precise(teacher_logits) / temperature).softmax(1)
    inter = 1 - _pearson(student, teacher).mean()
    intra = 1 - _pearson(student.T, teacher.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def standardised(logits: Tensor) -> Tensor:
    """Logits of each sample with mean 0 and standard deviation 1 (unbiased). Source: arXiv 2403.01427, algorithm 1.

    Args:
        logits: [B, C], C >= 2.

    Returns:
        [B, C].
    """
    logits = _precise(logits)
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def one_for_all(
    student_logits: Tensor, teacher_logits: Tensor, label: Tensor, eps: float, temperature: float = 1.0
) -> Tensor:
    """OFA: `-sum_c [(p_t[c] + y[c])^eps - y[c]] log p_s[c]`, y one-hot, mean over the batch.

    With eps = 1 it is the cross-entropy to the teacher; a larger one raises the true class by the teacher's confidence.
    Source: arXiv 2310.19444, eq. 7, and the authors' code, whose temperature has no factor T^2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        label: int64 [B], 0 <= label < C, or -1.
        eps: at least 1.
        temperature: T > 0.

    Returns:
        A scalar.
    """
    log_student = log_softmax(_precise(student_logits) / temperature, dim=1)
    teacher = (_precise(teacher_logits) / temperature).softmax(1)
    target = one_hot(_known(label, teacher_logits), teacher.shape[1])
    return -(((teacher + target) ** eps - target) * log_student).sum(1).mean()


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy to a distribution, mean over the samples whose target is one; rows of zeros are left out.

    Args:
        logits: [B, C].
        target: probabilities [B, C], or zeros where there is no target.

    Returns:
        A scalar, at least 0.
    """
    total = -(target * log_softmax(_precise(logits), dim=1)).sum()
    return total / (target.sum(1) > 0).sum().clamp(min=1)


def labelled_cross_entropy(logits: Tensor, label: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, mean over the samples that have a label.

    Without any label it is zero with a gradient of zeros, so that distributed training waits for nobody.

    Args:
        logits: [B, C].
        label: int64 [B], 0 <= label < C, or -1 for none.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).

    Returns:
        A scalar, at least 0.
    """
    total = cross_entropy(_precise(logits), label, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing)
    return total / (label >= 0).sum().clamp(min=1)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pearson(left: Tensor, right: Tensor) -> Tensor:
    """Correlation of the rows of [N, M] and [N, M]: [N]."""
    return cosine_similarity(left - left.mean(1, keepdim=True), right - right.mean(1, keepdim=True), dim=1)


def _known(label: Tensor, teacher_logits: Tensor) -> Tensor:
    return torch.where(label >= 0, label, teacher_logits.argmax(dim=1))


def _split(values: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B, C] at the label, [B], and at the other classes, [B, C - 1]."""
    column = label.unsqueeze(1)  # [B, 1]
    others = torch.arange(values.shape[1] - 1, device=values.device).expand(len(values), -1)
    others = others + (others >= column).long()  # counts on past the label
    return values.gather(1, column).squeeze(1), values.gather(1, others)
