"""Principal subspaces and how far apart two of them are (paper, sections Gradient overlap and Representation drift).

A subspace of R^width is held as a matrix whose k orthonormal columns span it. None of the measures depends on which
orthonormal columns are chosen, on their order or their signs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_ORTHONORMAL = 1e-3  # how far Q^T Q may be from the identity; float32 eigenvectors of wide layers reach 1e-5


def principal_subspace(moment: Float[Tensor, "width width"], k: int) -> Float[Tensor, "width k"]:
    """Eigenvectors of the `k` largest eigenvalues of a symmetric second moment X^T X, largest first.

    Computed and returned in float64 on the moment's device. ValueError unless 1 <= k <= width and all is finite.
    """
    width = moment.shape[0]
    if not 1 <= k <= width:
        raise ValueError(f"a subspace of {k} dimensions of {width}; choose k from 1 to {width}")
    return _eigen(moment)[1][:, :k]


def energy_rank(moment: Float[Tensor, "width width"], energy: float) -> int:
    """Smallest k whose principal subspace holds the share `energy`, 0 < energy <= 1, of the moment's trace.

    ValueError for a moment without energy: nothing can be chosen there.
    """
    values = _eigen(moment)[0].clamp(min=0)
    total = float(values.sum())
    if not 0 < energy <= 1 or total <= 0:
        raise ValueError(f"energy {energy} of a moment of trace {total:g}; wanted a share above 0 and up to 1 of a positive trace")
    reached = values.cumsum(0) >= energy * total * (1 - 1e-12)  # the last sum may miss the whole by rounding
    return int(reached.int().argmax()) + 1


def _eigen(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the symmetric part, largest first, in float64."""
    if not moment.isfinite().all():
        raise ValueError(
            f"{int((~moment.isfinite()).sum())} of {moment.numel()} moments are not finite; check the model for diverged weights"
        )
    moment = moment.double()
    values, vectors = torch.linalg.eigh((moment + moment.T) / 2)
    return values.flip(0), vectors.flip(1)


def principal_angles(a: Float[Tensor, "width k"], b: Float[Tensor, "width j"]) -> Float[Tensor, " smaller"]:
    """The min(k, j) principal angles between two subspaces, radians in [0, pi / 2], ascending.

    cos of the angles are the singular values of a^T b, exact for large angles only; below pi / 4 the angles come from
    their sines, the singular values of (1 - a a^T) b (Bjorck and Golub 1973; Knyazev and Argentati 2002, algorithm 3.1).
    """
    _check_pair(a, b)
    a, b = a.double(), b.to(a.device).double()
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    shared = a.T @ b
    cosines = torch.linalg.svdvals(shared).clamp(max=1)  # descending: the smallest angle first
    sines = torch.linalg.svdvals(b - a @ shared).clamp(max=1).flip(0)
    return torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"subspaces of {a.shape[0]} and of {b.shape[0]} dimensions; both must lie in the same space")
    for name, basis in (("first", a), ("second", b)):
        columns = basis.double()
        off = (columns.T @ columns - torch.eye(columns.shape[1], dtype=torch.float64, device=columns.device)).abs().max()
        if not off <= _ORTHONORMAL:
            raise ValueError(f"the columns of the {name} basis miss orthonormality by {float(off):.2g}; pass them through torch.linalg.qr")


def subspace_overlap(a: Float[Tensor, "width k"], b: Float[Tensor, "width j"]) -> float:
    """||a^T b||_F^2 / min(k, j), the mean squared cosine of the principal angles: 1 where one holds the other, 0 where orthogonal."""
    _check_pair(a, b)
    return float((a.double().T @ b.to(a.device).double()).square().sum()) / min(a.shape[1], b.shape[1])


def chance_overlap(width: int, k: int, j: int) -> float:
    """Expected `subspace_overlap` of two independent, uniformly random subspaces: (k j / width) / min(k, j) = max(k, j) / width."""
    if not 1 <= min(k, j) <= max(k, j) <= width:
        raise ValueError(f"subspaces of {k} and {j} dimensions of {width}; choose both from 1 to {width}")
    return max(k, j) / width


def grassmann_distance(angles: Float[Tensor, " angles"]) -> float:
    """Length of the geodesic between two subspaces on the Grassmann manifold, ||theta||_2 in radians (Edelman et al. 1998)."""
    return float(torch.linalg.vector_norm(angles.double()))


def chordal_distance(angles: Float[Tensor, " angles"]) -> float:
    """||sin theta||_2, 1 / sqrt(2) of the Frobenius distance of the two projectors where k = j (Conway et al. 1996)."""
    return float(torch.linalg.vector_norm(angles.double().sin()))
