"""What conversions do to one layer, as pictures (notebook 01)."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from sparsecl.comparisons import COMPARISONS
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, styled
from sparsecl.masks import as_matrix, prunable_weights
from sparsecl.topologies import parse_topology

COLUMNS = 4
COLOURS = ListedColormap(colormaps["magma_r"](np.linspace(0.12, 1, 200)))  # no weight is near white: white means removed


@styled
def mask_gallery(
    weight: Float[Tensor, "*experts outputs inputs"], masks: Mapping[str, Bool[Tensor, "*experts outputs inputs"]], corner: int = 64
) -> Figure:
    """The first `corner` outputs and inputs of a layer: the dense weights, and those that each mask keeps.

    `masks` maps a label to a mask of the weight's shape. Colours are magnitudes of the dense weights, the same in every
    panel, so that what a score prefers shows; a removed weight is white. Above each panel stands the kept share of the layer.
    """
    if not masks:
        raise NothingToDraw("masks: none to show; convert at least one arm in 01_sparsify")
    dense = _corner(weight.detach().float().abs(), corner)
    limit = float(np.quantile(dense, 0.99))  # single large weights would leave the others pale
    columns = min(len(masks) + 1, COLUMNS)
    rows = -(-(len(masks) + 1) // columns)
    size = {"figsize": (TEXT_WIDTH * columns / COLUMNS, 1.7 * rows + 0.7), "dpi": 200}  # a weight needs whole pixels
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, **size)
    panels = list(grid.flat)
    image = _draw(panels[0], dense, limit, "dense weights")
    for axes, (label, mask) in zip(panels[1:], masks.items(), strict=False):
        kept = _corner(mask, corner)
        _draw(axes, np.where(kept, dense, np.nan), limit, f"{label} ({100 * float(mask.float().mean()):.3g} %)")
    for axes in panels[len(masks) + 1 :]:
        axes.set_visible(False)
    figure.colorbar(
        image, ax=grid, orientation="horizontal", shrink=0.5, aspect=30, pad=0.02, label="magnitude of the dense weight", extend="max"
    )
    return figure


def _corner(values: Tensor, corner: int) -> np.ndarray:
    return as_matrix(values)[:corner, :corner].cpu().numpy()


def _draw(axes: Axes, values: np.ndarray, limit: float, title: str):
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    return axes.imshow(values, cmap=COLOURS, vmin=0, vmax=limit, interpolation="nearest")


def compared_masks(model: nn.Module, converted: Sequence, comparison: str) -> Figure:
    """The gallery of one comparison (a key of `sparsecl.comparisons.COMPARISONS`) on the first prunable weight of the dense `model`.

    `converted` are checkpoints with an `arm` and its `masks`. Raises NothingToDraw where none belongs to the comparison.
    """
    rule = COMPARISONS[comparison]
    name, weight = next(iter(prunable_weights(model).items()))
    chosen = {choice: found.masks.weights[name] for found in converted if (choice := rule.choice(found.arm)) is not None}
    tiles = [max(parse_topology(found.arm.topology).tile) for found in converted if found.arm.is_sparse]
    # Of a block that fills the corner nothing would be seen.
    corner = max(64, 2 * max(tiles, default=0)) if comparison == "topologies" else 64
    return mask_gallery(weight, {rule.label(choice): chosen[choice] for choice in sorted(chosen, key=rule.order)}, corner)
