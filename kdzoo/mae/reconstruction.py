"""The figure of a masked autoencoder: what was there, what it saw, what it made of it."""

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from kdzoo.metrics.figures import INK, styled


def reconstruction_figure(original: Tensor, masked: Tensor, reconstruction: Tensor) -> Figure:
    """Draw three rows of images, [N, C, H, W] in [0, 1] each; hidden pixels of `masked` are NaN and left blank."""
    figure, axes = styled(1.3 * len(original), 4.2, 3, len(original))
    rows = {"original": original, "visible": masked, "reconstruction": reconstruction}
    for row, (name, images) in enumerate(rows.items()):
        pictures = images.float().cpu().permute(0, 2, 3, 1).numpy()  # [N, H, W, C]
        for column, picture in enumerate(pictures):
            ax = axes[row * len(original) + column]
            shown = picture if picture.shape[2] == 3 else np.repeat(picture.mean(2, keepdims=True), 3, axis=2)
            opaque = ~np.isnan(shown).any(axis=2, keepdims=True)
            ax.imshow(np.concatenate([np.nan_to_num(shown).clip(0, 1), opaque], axis=2), interpolation="none")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
            for spine in ax.spines.values():
                spine.set_visible(False)
        axes[row * len(original)].set_ylabel(name, color=INK, fontsize=9)
    return figure
