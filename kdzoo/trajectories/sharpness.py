"""SAM and GSAM: gradient steps that look for flat places.

    e  = rho * w^2 * g / |w * g|            (adaptive; else rho * g / |g|),   g = grad L(w)
    g' = grad L(w + e)
    step with g' - alpha * (g - cos(g, g') * |g| / |g'| * g'),  taken at w

The last term descends on the surrogate gap L(w + e) - L(w) without climbing on L(w + e): it is the part of g that is
orthogonal to g'. With alpha = 0 it is SAM. Norms and the cosine are over all parameters together.
Source: Foret et al., arXiv 2010.01412 (SAM); Kwon et al., arXiv 2102.11600 (adaptive); Zhuang et al., arXiv 2203.08065
(GSAM).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdzoo.errors import UserError

EPSILON = 1e-12  # in denominators


class GSAM(torch.optim.Optimizer):
    """Wraps an optimizer, whose step it takes with the gradient above.

    Args:
        base: The optimizer of all trained parameters of `network`.
        network: Whose running statistics are those of the first pass alone.
        rho: Radius of the climb; not negative.
        alpha: Share of the gap's descent; 0 is SAM.
        adaptive: Scale the climb by the parameters' sizes.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        network: nn.Module,
        rho: float = 0.01,
        alpha: float = 0.0,
        adaptive: bool = True,
    ) -> None:
        if rho < 0 or alpha < 0:
            raise UserError(f"GSAM with rho={rho} and alpha={alpha} would climb: give both 0 or more.")
        super().__init__([parameter for group in base.param_groups for parameter in group["params"]], {})
        self.base, self.network = base, network
        self.rho, self.alpha, self.adaptive = rho, alpha, adaptive
        self.param_groups = base.param_groups  # a scheduler of either changes both

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: Sets the gradients of the parameters (from zero) and returns the loss. It is called twice and must
                see the same batch with the same augmentation both times.

        Returns:
            The loss at w, as the closure returns it.
        """
        if closure is None:
            raise UserError("GSAM looks at the loss twice in a step: give `step` a closure.")
        with torch.enable_grad():
            loss = closure()
        parameters: list[Tensor] = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        first = [_gradient(parameter).clone() for parameter in parameters]
        before = [parameter.clone() for parameter in parameters]  # subtracting e again would round
        sizes = [parameter.abs() if self.adaptive else torch.ones_like(parameter) for parameter in parameters]
        length = _norm([size * gradient for size, gradient in zip(sizes, first)]) + EPSILON
        for parameter, gradient, size in zip(parameters, first, sizes):
            parameter.add_(self.rho * size**2 * gradient / length)
        with torch.enable_grad(), frozen_statistics(self.network):
            closure()
        for parameter, value in zip(parameters, before):
            parameter.copy_(value)
        if self.alpha:
            second = [_gradient(parameter) for parameter in parameters]
            dot = torch.stack([(g * h).sum() for g, h in zip(first, second)]).sum()
            cosine = dot / (_norm(first) * _norm(second) + EPSILON)
            along = cosine * _norm(first) / (_norm(second) + EPSILON)
            for g, h in zip(first, second):
                h.sub_(self.alpha * (g - along * h))
        self.base.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state: there is no other between two steps."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norms leave their running statistics as they are."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    counts: list[Any] = [norm.num_batches_tracked for norm in norms]
    before = [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count, value in zip(norms, momenta, counts, before):
            norm.momentum = momentum
            count.copy_(value)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm()
