"""torchmetrics' scores of a classifier, in percent."""

from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
)


class Percent(MulticlassAccuracy):
    """Accuracy in percent."""

    def compute(self) -> Tensor:
        """Return the accuracy over all samples, in [0, 100]."""
        return 100 * super().compute()


class PercentError(MulticlassCalibrationError):
    """Expected calibration error in percent."""

    def compute(self) -> Tensor:
        """Return the expected calibration error, in [0, 100]."""
        return 100 * super().compute()


class PercentF1(MulticlassF1Score):
    """F1 in percent."""

    def compute(self) -> Tensor:
        """Return the F1 score, in [0, 100]."""
        return 100 * super().compute()


class PercentAUC(MulticlassAUROC):
    """Area under the ROC curve in percent."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the area, in [0, 100], the mean over the classes (each against all others)."""
        return 100 * super().compute()
