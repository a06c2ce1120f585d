"""What a conversion does to one layer, as a picture (notebook 01)."""

import matplotlib.pyplot as plt
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from sparsecl.figure_style import styled


@styled
def mask_picture(weight: Float[Tensor, "outputs inputs"], mask: Bool[Tensor, "outputs inputs"], corner: int = 32) -> Figure:
    """The top left corner of a layer: the dense weights, and which of them the mask keeps."""
    weight, mask = weight[:corner, :corner].detach(), mask[:corner, :corner]
    limit = float(weight.abs().max())
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.5, 3.1), layout="constrained")
    image = left.imshow(weight, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(image, ax=left, shrink=0.8, label="weight")
    right.imshow(mask, cmap="Greys", vmin=0, vmax=1)
    for axes in (left, right):
        axes.grid(False)
    left.set(title="dense weights", xlabel="input", ylabel="output")
    right.set(title="kept by the mask (black)", xlabel="input")
    return figure
