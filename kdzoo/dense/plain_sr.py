"""Plain super-resolution: a stack of convolutions, the baseline of the methods with a structure.

    loss = L1(f(lr), hr)

The network has the two ends and the long skip of IMDN, so that a comparison at equal parameters is one of what lies
between. With `layers: 0` it is bicubic interpolation, which has nothing to learn (run it with `trainer.max_steps: 0`).
"""

from lightning.pytorch.cli import OptimizerCallable

from kdzoo.card import Card
from kdzoo.dense.super_resolver import SuperResolver

CARD = Card(
    title="Plain super-resolution",
    year=2016,
    family="dense",
    task="super-resolution",
    student="3x3 convolutions and sub-pixel up-sampling",
    data="photographs",
    tags=("super-resolution", "baseline", "teacher"),
)


class PlainSR(SuperResolver):
    """Trains a plain convolutional network.

    Args:
        features: Channels.
        layers: 3x3 convolutions between the first and the up-sampler; 19 of 64 channels have the parameters of IMDN.
        lr: Learning rate of Adam at the start.
        stages: The rate is halved after each of so many equal parts of the run.
        optimizer: Another optimizer; its learning rate is halved in the same way.
        weights: Export of a run to start from; one for another scale gives all but its up-sampler.
    """

    def __init__(
        self,
        features: int = 64,
        layers: int = 19,
        lr: float = 2e-4,
        stages: int = 5,
        optimizer: OptimizerCallable | None = None,
        weights: str | None = None,
    ) -> None:
        super().__init__("plain_sr", {"features": features, "layers": layers}, lr, stages, optimizer, weights)
