"""A few steps of gradient descent, unrolled, so that what they were taken on can be improved.

    v_{i+1} = momentum * v_i + grad_theta loss(theta_i, i, learned)
    theta_{i+1} = theta_i - rate * v_{i+1}

What comes out can be differentiated with respect to the rate and to whatever the loss learns from: pixels, labels, node
features. The unroller knows nothing of these: a loss is a function of (parameters [P], number of the step, *learned).
It must be a pure function, as it is called again where `mode` recomputes: what is random in it has to be drawn before.

    mode        derivatives                                        memory
    full        exact                                              grows with the steps
    checkpoint  exact, the same bits as `full`                     one step, and the parameters after each
    truncated   those of the last steps; earlier ones are taken    grows with the last steps
                as they came
    tesla       each gradient as a function of what it was taken   one step
                on, at parameters that are taken as they came

With `tesla`, |theta_N - target|^2 is |D + rate * sum_i g_i|^2 whose derivative is gathered step by step (arXiv
2211.10586, eq. 5 to 7). It equals the exact one where a gradient does not depend on the parameters, in particular for a
single step; elsewhere it leaves out what a change of an early step does to the gradients of later ones.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdzoo.errors import UserError

Mode = Literal["full", "checkpoint", "truncated", "tesla"]
Loss = Callable[..., Tensor]


def unroll(
    loss: Loss,
    start: Tensor,
    rate: Tensor,
    learned: Sequence[Tensor],
    steps: int,
    momentum: float = 0.0,
    mode: Mode = "full",
    last: int = 8,
    keep: Collection[int] = (),
) -> list[Tensor]:
    """Take `steps` steps of gradient descent from `start`.

    Args:
        loss: (parameters [P], step 0 ... steps - 1, *learned) to a scalar.
        start: Parameters, float [P].
        rate: Learning rate, a scalar tensor.
        learned: Float tensors that the loss depends on.
        steps: Number of steps, 1 or more.
        momentum: Heavy-ball momentum, without dampening.
        mode: How it is differentiated, see above.
        last: Steps at the end that `truncated` differentiates.
        keep: After how many steps the parameters are wanted, beside the last ones; each 1 ... steps.

    Returns:
        Parameters [P] after the steps of `keep`, ascending, and after the last.

    Raises:
        UserError: There is no step to take, or none to differentiate.
    """
    if steps < 1 or (mode == "truncated" and last < 1):
        raise UserError("An inner loop needs 1 step or more, and as many at least that are differentiated.")
    kept = sorted({*keep, steps})
    if mode == "tesla":
        return list(_Tesla.apply(loss, steps, momentum, kept, start, rate, *learned))
    parameters, velocity, found = start, torch.zeros_like(start), []
    for number in range(steps):
        if mode == "checkpoint":
            gradient = _Checkpoint.apply(loss, number, parameters, *learned)
        else:
            graph = mode == "full" or number >= steps - last
            gradient = _gradient(loss, number, parameters, learned, graph)
        velocity = momentum * velocity + gradient
        parameters = parameters - rate * velocity
        if number + 1 in kept:
            found.append(parameters)
    return found


def _gradient(loss: Loss, number: int, parameters: Tensor, learned: Sequence[Tensor], graph: bool) -> Tensor:
    """The gradient of the loss by the parameters [P]; with `graph` a differentiable one."""
    with torch.enable_grad():
        at = parameters if graph and parameters.requires_grad else parameters.detach().requires_grad_()
        learned = learned if graph else [tensor.detach() for tensor in learned]
        return torch.autograd.grad(loss(at, number, *learned), at, create_graph=graph)[0]


class _Checkpoint(torch.autograd.Function):
    """A gradient that keeps its inputs alone, and is taken again to be differentiated."""

    @staticmethod
    def forward(ctx: Any, loss: Loss, number: int, *tensors: Tensor) -> Tensor:
        ctx.how = loss, number
        ctx.save_for_backward(*tensors)
        # A differentiable gradient comes from other kernels with other rounding: here too, for the bits of `full`.
        parameters, *learned = (tensor.detach().requires_grad_() for tensor in tensors)
        return _gradient(loss, number, parameters, learned, graph=True).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed)]
            loss, number = ctx.how
            gradient = _gradient(loss, number, tensors[0], tensors[1:], graph=True)
            wanted = [tensor for tensor in tensors if tensor.requires_grad]
            found = iter(torch.autograd.grad(gradient, wanted, outer, allow_unused=True))
        return None, None, *(next(found) if need else None for need in needed)


class _Tesla(torch.autograd.Function):
    """All steps, taken again to be differentiated one by one, with nothing kept of the one before but where it led."""

    @staticmethod
    def forward(
        ctx: Any, loss: Loss, steps: int, momentum: float, kept: list[int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.how = loss, steps, momentum, kept
        ctx.save_for_backward(*tensors)
        parameters, rate, *learned = tensors
        velocity, found = torch.zeros_like(parameters), []
        for number in range(steps):
            velocity = momentum * velocity + _gradient(loss, number, parameters, learned, graph=False)
            parameters = parameters - rate * velocity
            if number + 1 in kept:
                found.append(parameters)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        loss, steps, momentum, kept = ctx.how
        parameters, rate, *learned = ctx.saved_tensors
        velocity, way = torch.zeros_like(parameters), torch.zeros_like(parameters)
        for_rate, for_learned = torch.zeros_like(rate), [torch.zeros_like(tensor) for tensor in learned]
        for number in range(steps):
            # theta_k = start - rate * sum_i (1 + momentum + ... + momentum^(k - 1 - i)) g_i
            shares = [sum(momentum**power for power in range(end - number)) for end in kept]
            pull = torch.stack([share * each for share, each in zip(shares, outer)]).sum(0)
            with torch.enable_grad():
                inputs = [tensor.detach().requires_grad_() for tensor in learned]
                gradient = _gradient(loss, number, parameters, inputs, graph=True)
                found = torch.autograd.grad(gradient, inputs, -rate * pull, allow_unused=True)
            for total, part in zip(for_learned, found):
                if part is not None:
                    total += part
            velocity = momentum * velocity + gradient.detach()
            way += velocity
            parameters = parameters - rate * velocity
            for end, each in zip(kept, outer):
                if end == number + 1:
                    for_rate -= each @ way
        return None, None, None, None, None, for_rate, *for_learned
