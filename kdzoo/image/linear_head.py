"""`LinearHead`: the classifier of a network that averages its last map and has one linear layer."""

from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from kdzoo.errors import UserError
from kdzoo.students.network import ImageNetwork


class LinearHead:
    """A view of a network's own classifier; it owns nothing.

    Args:
        network: The network.

    Raises:
        UserError: Its head is of another kind.
    """

    def __init__(self, network: ImageNetwork) -> None:
        body = network.network
        classifier = body.get_classifier()  # type: ignore[operator]
        pool = getattr(getattr(body, "global_pool", None), "pool_type", getattr(body, "global_pool", None))
        if not isinstance(classifier, nn.Linear) or pool != "avg":
            raise UserError(
                f"'{network.architecture}' has no classifier of average pooling and one linear layer, which is read "
                "at every place: take a plain convolutional network."
            )
        self.classifier = classifier

    def everywhere(self, feature: Tensor) -> Tensor:
        """Class activation maps: [B, C, H, W] to [B, classes, H, W]; their mean is the logit."""
        return conv2d(feature, self.classifier.weight[:, :, None, None].to(feature), self.classifier.bias)

    def __call__(self, feature: Tensor) -> Tensor:
        """Logits: [B, C, H, W] to [B, classes]."""
        return linear(feature.mean((2, 3)), self.classifier.weight, self.classifier.bias)
