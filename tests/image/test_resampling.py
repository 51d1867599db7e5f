"""One interpolation along each axis brings a volume to another grid, and nothing moves."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from conftest import make_affine
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from iqtflow.image.resampling import isotropic_grid, same_axes, to_grid


@given(
    n=st.tuples(*[st.integers(1, 60)] * 3),
    edges=st.tuples(*[st.floats(0.3, 8)] * 3),
    wanted=st.floats(0.7, 1.5),
)
@settings(max_examples=40, deadline=None)
def test_cubic_voxels_fill_the_field_of_view_about_the_same_centre(n, edges, wanted):
    affine = make_affine(edges)
    shape, grid = isotropic_grid(n, affine, wanted)
    np.testing.assert_allclose(voxel_sizes(grid), wanted)
    centres = [apply_affine(a, (np.array(s) - 1) / 2) for a, s in ((affine, n), (grid, shape))]
    np.testing.assert_allclose(*centres, atol=1e-6)
    lost = np.abs(np.multiply(shape, wanted) - np.multiply(n, edges))
    assert (lost <= np.maximum(wanted / 2, wanted - np.multiply(n, edges)) + 1e-6).all()


@pytest.mark.parametrize("wanted", [0.7, 1.0, 1.5])
def test_a_smooth_blob_keeps_its_place_size_and_sum(wanted):
    affine, centre_mm, width_mm = make_affine((0.9, 1.1, 4.0)), np.array([-70, -95, -30]), 7.0
    shape = (50, 48, 20)

    def blob(on, its_shape):
        voxels = np.moveaxis(np.indices(its_shape), 0, -1)
        away = np.linalg.norm(apply_affine(on, voxels) - centre_mm, axis=-1)
        return np.exp(-0.5 * (away / width_mm) ** 2)

    new, grid = isotropic_grid(shape, affine, wanted)
    np.testing.assert_allclose(to_grid(blob(affine, shape), affine, new, grid), blob(grid, new), atol=0.02)


def test_an_axis_that_is_on_the_grid_keeps_its_values():
    data, affine = np.random.default_rng(0).random((6, 7, 8)).astype(np.float32), make_affine((1, 1, 2))
    assert to_grid(data, affine, data.shape, affine) is data
    shape, grid = isotropic_grid(data.shape, affine, 1.0)
    out = to_grid(data, affine, shape, grid)
    column = to_grid(data[3:4, 4:5], affine, (1, 1, 16), grid)
    np.testing.assert_allclose(out[3, 4], column[0, 0], rtol=1e-6)


def test_one_interpolation_keeps_fine_detail_that_two_lose():
    """A wave of three voxels: against scipy's own interpolation, and through an intermediate grid."""
    n, affine = 60, make_affine((1.0, 1.0, 1.0))
    wave = np.cos(2 * np.pi * np.arange(n) / 3.0)
    data = np.broadcast_to(wave[:, None, None], (n, 4, 4))
    half = isotropic_grid((n, 4, 4), affine, 0.93)
    shape, grid = isotropic_grid((n, 4, 4), affine, 0.8)
    once = to_grid(data, affine, shape, grid)
    where = (np.linalg.inv(affine) @ grid)[0, 3] + 0.8 * np.arange(shape[0])
    np.testing.assert_allclose(
        once[4:-4, 2, 2], ndimage.map_coordinates(wave, [where], order=3, mode="mirror")[4:-4], atol=1e-5
    )
    twice = to_grid(to_grid(data, affine, *half), half[1], shape, grid)
    truth = np.cos(2 * np.pi * where / 3.0)
    errors = [np.abs(volume[8:-8, 2, 2] - truth[8:-8]).max() for volume in (once, twice)]
    assert errors[1] > 1.3 * errors[0]


def test_detail_finer_than_the_new_voxels_does_not_alias():
    """A wave of 2.2 voxels on voxels twice as wide must not come out as a wave of 20 voxels."""
    wave = np.cos(2 * np.pi * np.arange(80) / 2.2)
    data, affine = np.broadcast_to(wave[:, None, None], (80, 3, 3)), make_affine((0.75, 1.5, 1.5))
    out = to_grid(data, affine, *isotropic_grid(data.shape, affine, 1.5))
    assert np.abs(out[4:-4]).max() < 0.3


def test_a_turned_grid_is_no_grid_of_the_same_axes():
    affine, turned = make_affine((1, 1, 3)), make_affine((1, 1, 3), tilt_degrees=12)
    flipped = nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], (5, 5, 5))
    assert same_axes(affine, affine @ np.diag([2, 0.5, 0.3, 1]))
    for other in (turned, affine @ flipped):
        assert not same_axes(affine, other)
        with pytest.raises(ValueError, match="axes"):
            to_grid(np.ones((5, 5, 5)), affine, (5, 5, 5), other)
