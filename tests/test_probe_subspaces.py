"""Principal subspaces and their distances against closed forms, brute force and random subspaces."""

import math

import numpy as np
import pytest
import torch

from sparsecl.probing.subspaces import (
    chance_overlap,
    chordal_distance,
    energy_rank,
    grassmann_distance,
    principal_angles,
    principal_subspace,
    subspace_overlap,
)


def random_basis(width, k, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, k, generator=generator, dtype=torch.float64))[0]


def rotated_in_planes(basis, angles):
    """Each column turned by its angle towards a direction of its own outside the subspace."""
    k = basis.shape[1]
    outside = torch.linalg.qr(basis, mode="complete")[0][:, k : 2 * k]
    angles = torch.tensor(angles, dtype=torch.float64)
    return basis * angles.cos() + outside * angles.sin()


def test_a_principal_subspace_is_that_of_the_largest_eigenvalues():
    basis = random_basis(12, 12, 0)
    moment = basis @ torch.diag(torch.arange(12, 0, -1, dtype=torch.float64)) @ basis.T
    found = principal_subspace(moment, 3)
    assert (found.T @ basis[:, :3]).abs() == pytest.approx(np.eye(3), abs=1e-12)  # largest first, signs are free
    assert torch.equal(found, principal_subspace(moment, 3))
    assert principal_subspace(moment.float(), 3).dtype == torch.float64


def test_the_rank_is_the_smallest_that_holds_the_energy():
    moment = torch.diag(torch.tensor([1.0, 6.0, 3.0, 0.0]))
    assert [energy_rank(moment, share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert energy_rank(torch.eye(5), 1.0) == 5
    with pytest.raises(ValueError, match="energy 0.9 of a moment of trace 0"):
        energy_rank(torch.zeros(3, 3), 0.9)


@pytest.mark.parametrize("angles", [[0.2, 0.7, 1.5], [1e-9, 1e-6, 1e-3], [0.0, math.pi / 4, math.pi / 2]])
def test_known_rotations_give_their_angles(angles):
    basis = random_basis(20, 3, 1)
    turned = rotated_in_planes(basis, angles) @ random_basis(3, 3, 2)  # another basis of the same subspace
    found = principal_angles(basis, turned)
    assert found.tolist() == pytest.approx(angles, rel=1e-6, abs=1e-14)  # arccos alone would lose everything below 1e-8
    assert principal_angles(turned, basis).tolist() == pytest.approx(angles, rel=1e-6, abs=1e-14)
    assert grassmann_distance(found) == pytest.approx(math.sqrt(sum(angle**2 for angle in angles)))
    assert chordal_distance(found) == pytest.approx(math.sqrt(sum(math.sin(angle) ** 2 for angle in angles)))
    assert subspace_overlap(basis, turned) == pytest.approx(sum(math.cos(angle) ** 2 for angle in angles) / 3)


def test_subspaces_of_different_dimensions():
    whole = random_basis(10, 10, 3)
    inner, outer = whole[:, :2], whole[:, :5]
    assert principal_angles(outer, inner).tolist() == pytest.approx([0, 0], abs=1e-14)
    assert principal_angles(inner, outer).shape == (2,)
    assert [subspace_overlap(inner, outer), subspace_overlap(outer, inner)] == pytest.approx([1, 1])
    assert principal_angles(inner, whole[:, 5:9]).tolist() == pytest.approx([math.pi / 2] * 2)


def test_angles_equal_a_brute_force_search():
    """The smallest angle is that between the closest two unit vectors of two planes."""
    a, b = random_basis(6, 2, 4), random_basis(6, 2, 5)
    turn = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    circle = torch.stack([turn.cos(), turn.sin()])
    assert float((a @ circle).T.matmul(b @ circle).abs().max().acos()) == pytest.approx(float(principal_angles(a, b)[0]), abs=1e-3)


def test_chordal_distance_is_that_of_the_projectors():
    a, b = random_basis(9, 4, 6), random_basis(9, 4, 7)
    apart = torch.linalg.matrix_norm(a @ a.T - b @ b.T) / math.sqrt(2)
    assert chordal_distance(principal_angles(a, b)) == pytest.approx(float(apart))


@pytest.mark.parametrize(("k", "j"), [(3, 3), (2, 7)])
def test_random_subspaces_overlap_by_chance(k, j):
    drawn = [subspace_overlap(random_basis(16, k, 2 * draw), random_basis(16, j, 2 * draw + 1)) for draw in range(400)]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert np.mean(drawn) == pytest.approx(chance_overlap(16, k, j), abs=4 * error)


def test_what_cannot_be_compared_is_named():
    basis = random_basis(8, 2, 8)
    with pytest.raises(ValueError, match="a subspace of 9 dimensions of 8"):
        principal_subspace(torch.eye(8), 9)
    with pytest.raises(ValueError, match="64 of 64 moments are not finite"):
        principal_subspace(torch.full((8, 8), math.nan), 1)
    with pytest.raises((ValueError, TypeError), match="8 and of 9 dimensions|width=8"):  # the shape annotation may be first
        principal_angles(basis, random_basis(9, 2, 8))
    with pytest.raises(ValueError, match="second basis miss orthonormality by 3"):
        subspace_overlap(basis, 2 * basis)
    with pytest.raises(ValueError, match="subspaces of 3 and 9 dimensions of 8"):
        chance_overlap(8, 3, 9)
