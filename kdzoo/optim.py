"""How a network is optimised: the paper's SGD unless told otherwise, with schedules that are fractions of the run."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau

from kdzoo.errors import UserError

Schedule = Literal["step", "cosine", "poly", "constant"]
POWER = 0.9  # of `poly`, as segmentation has it


@dataclass(frozen=True)
class Optim:
    """The optimizer of a method. The defaults are the field's for CIFAR (240 epochs, decays at 150, 180, 210).

    Args:
        lr: Peak learning rate.
        weight_decay: L2 penalty.
        momentum: Nesterov momentum.
        schedule: Shape of the learning rate over the run: `step` multiplies it by 0.1 at each milestone,
            `poly` by (1 - progress)^0.9.
        milestones: Where `step` decays, as fractions of the run in (0, 1).
        warmup: Fraction of the run over which the learning rate rises linearly from zero.
        optimizer: Any torch optimizer in place of `name`; `lr`, `weight_decay` and `momentum` are then its own.
        lr_scheduler: Any torch scheduler, stepped once an epoch, in place of `schedule`.
        name: `sgd`, `adam` or `adamw`.
        betas: decay rates of the two averages of Adam and AdamW.
    """

    lr: float = 0.05
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Schedule = "step"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    warmup: float = 0.0
    optimizer: OptimizerCallable | None = None
    lr_scheduler: LRSchedulerCallable | None = None
    name: Literal["sgd", "adam", "adamw"] = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)

    def factor(self, progress: float) -> float:
        """Learning rate at `progress` (fraction of the run, [0, 1]) as a multiple of the peak."""
        ramp = min(1.0, progress / self.warmup) if self.warmup > 0 else 1.0
        if self.schedule == "cosine":
            done = (progress - self.warmup) / (1 - self.warmup)
            return ramp * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
        if self.schedule == "poly":
            return ramp * max(0.0, 1 - progress) ** POWER
        if self.schedule == "step":
            return ramp * 0.1 ** sum(progress >= milestone for milestone in self.milestones)
        return ramp

    def configure(
        self,
        parameters: Iterable[Any],
        total_steps: float,
        cycles: int = 1,
        factor: Callable[[float], float] | None = None,
    ) -> dict[str, Any]:
        """Build what `LightningModule.configure_optimizers` returns.

        Args:
            parameters: Parameters or parameter groups; a group's own `lr` follows the schedule too.
            total_steps: Optimizer steps of the whole run.
            cycles: How often the schedule is gone through in it.
            factor: A schedule in place of `self.factor`, made of it perhaps.

        Raises:
            UserError: The run has no end, so that a schedule over fractions of it has no meaning.
        """
        if self.optimizer is not None:
            optimizer = self.optimizer(parameters)
        elif self.name in ("adam", "adamw"):
            adam = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
            optimizer = adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.momentum > 0,
            )
        if self.lr_scheduler is not None:
            scheduler = self.lr_scheduler(optimizer)
            if isinstance(scheduler, ReduceLROnPlateau):
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}
        if self.schedule == "constant" and self.warmup == 0 and factor is None:
            return {"optimizer": optimizer}
        if not math.isfinite(total_steps):
            raise UserError(
                f"The schedule '{self.schedule}' needs the length of the run: give trainer.max_epochs or max_steps."
            )

        def progress(step: int, total: float) -> float:
            done = step * cycles % total if step < total else total  # exact for whole numbers
            # The first step of a warm-up must move: count it as done while it is taken.
            return (done + cycles * (self.warmup > 0)) / total

        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: (factor or self.factor)(progress(step, max(1.0, total_steps)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
