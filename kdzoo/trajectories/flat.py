"""A network as a function of one flat vector of its parameters."""

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Flat:
    """Calls a network with parameters that come as one vector; derivatives of any order pass through.

    Args:
        network: Any module. Its own parameters are neither used nor changed by a call; its buffers are its own.

    Attributes:
        size: Number of parameters, the length P of the vector.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False)
        parameters = dict(network.named_parameters())
        self.names = list(parameters)
        self.shapes = [parameter.shape for parameter in parameters.values()]
        self.sizes = [parameter.numel() for parameter in parameters.values()]
        self.size = sum(self.sizes)

    def __call__(self, vector: Tensor, *inputs: Tensor) -> Tensor:
        """What the network makes of `inputs` with the parameters `vector` [P]."""
        return functional_call(self.network, dict(zip(self.names, self.split(vector))), inputs)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The parameters in `vector` [P], each in its shape, in the network's order."""
        return [part.view(shape) for part, shape in zip(vector.split(self.sizes), self.shapes)]


def flatten(network: nn.Module) -> Tensor:
    """A copy of a network's parameters as one vector, float32 [P]."""
    return torch.cat([parameter.detach().float().flatten() for parameter in network.parameters()])
