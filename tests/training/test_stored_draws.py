"""Training on N stored draws: from memory-mapped volumes, or from the paper's explicit patch library."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training_phantoms import TINY, own_place, write_libraries

from iqtflow.simulation.snr_prior import PUBLISHED
from iqtflow.training.library import PATCH, read_library
from iqtflow.training.pairs import PairSampler, read_pairs, write_pairs
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.samplers import Degradation, DrawSampler, StoredSampler, cut_pair, simulate_batch
from iqtflow.training.trainer import make_sampler
from iqtflow.utils.errors import InputError

PRIOR = PUBLISHED["ibadan-0.36T"]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    paths = write_libraries(tmp_path_factory.mktemp("stored"), subjects=2, n_draws=2)
    return [read_library(path) for path in paths]


@pytest.fixture(scope="module")
def pairs(libraries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    paths = [folder / f"sub-{library.subject}_pairs.npy" for library in libraries]
    for path, library in zip(paths, libraries, strict=True):
        write_pairs(path, library, n_draws=2, fraction=0.5)
    return [read_pairs(path) for path in paths]


@pytest.mark.parametrize("mirror", [False, True])
def test_low_and_high_patches_of_stored_draws_show_the_same_place(libraries, pairs, mirror):
    """A slip of one slice in one of them would be four voxels."""
    same = {"k": 4, "n_draws": 2, "batch_size": 8, "seed": 1, "mirror": mirror, "prior": PRIOR}
    for sampler in (StoredSampler(libraries, **same), PairSampler(pairs, **same)):
        low, high = simulate_batch(sampler.batch(3))
        assert low.shape == (8, 1, 32, 32, 8) and high.shape == (8, 1, 32, 32, 32)
        assert low.dtype == high.dtype == torch.float32
        place, error = own_place(low, high)
        assert place == list(range(8))
        assert error.max() < 0.02


def test_a_pair_holds_the_voxels_of_scan_and_image(libraries):
    library = libraries[0]
    for draw in library.draws:
        low, high = cut_pair(library, draw, library.corners[len(library.corners) // 2], PATCH)
        scan = np.moveaxis(np.asarray(draw.volume), draw.axis, 2)
        image = np.moveaxis(np.asarray(library.intensity), draw.axis, 2)
        scans = np.lib.stride_tricks.sliding_window_view(scan, low.shape)
        images = np.lib.stride_tricks.sliding_window_view(image, high.shape)
        found_low = np.argwhere(np.isclose(scans[..., 16, 16, 4], low[16, 16, 4]))
        found_high = np.argwhere(np.isclose(images[..., 16, 16, 16], high[16, 16, 16]))
        origin = np.array([*np.delete(library.origin, draw.axis), library.origin[draw.axis]])
        low_corners = {tuple(p * (1, 1, 4)) for p in found_low if np.allclose(scans[tuple(p)], low)}
        high_corners = {tuple(p + origin) for p in found_high if np.allclose(images[tuple(p)], high)}
        assert low_corners == high_corners and len(low_corners) == 1


def test_the_intensity_scale_of_a_stored_draw_is_that_of_fresh_ones(libraries):
    """White matter is close to 1 for the network in either case."""
    batches = StoredSampler(libraries, k=4, n_draws=2, batch_size=16, seed=0)
    _, stored = simulate_batch(batches.batch(0))
    fresh = DrawSampler(libraries, k=4, batch_size=16, degradation=Degradation(), seed=0)
    _, drawn = simulate_batch(fresh.batch(0))
    for high in (stored, drawn):
        assert float(high[high > 0.85].median()) == pytest.approx(1, abs=0.06)


def test_n_counts_the_draws_that_are_seen(libraries):
    """N = 1 sees the first draw of each subject and no other."""

    def scans(n, sources):
        return StoredSampler(sources, k=4, n_draws=n, batch_size=40, seed=0).batch(0)["low"]

    first_alone = [dataclasses.replace(library, draws=library.draws[:1]) for library in libraries]
    assert torch.equal(scans(1, libraries), scans(1, first_alone))
    differ = (scans(2, libraries) != scans(1, libraries)).flatten(1).any(dim=1)
    assert 0.3 < float(differ.float().mean()) < 0.7
    with pytest.raises(InputError, match=r"--draws 3"):
        StoredSampler(libraries, k=4, n_draws=3, batch_size=1, seed=0)


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (2, 3)])
def test_processes_share_out_the_batch_of_a_single_one(libraries, pairs, rank, world):
    same = {"k": 4, "batch_size": 6, "seed": 4}
    fresh = DrawSampler(libraries, degradation=Degradation(mirror=True, bias_amplitude=0.1), **same)
    stored = StoredSampler(libraries, n_draws=2, mirror=True, **same)
    explicit = PairSampler(pairs, n_draws=2, mirror=True, **same)
    for sampler in (fresh, stored, explicit):
        whole = simulate_batch(sampler.batch(5))
        part = simulate_batch(sampler.batch(5, rank=rank, world=world))
        for mine, all_of_them in zip(part, whole, strict=True):
            assert torch.equal(mine, all_of_them[rank::world])


def test_every_pair_is_read_once_before_any_is_read_again(pairs):
    total = sum(file.n_patches for file in pairs)
    sampler = PairSampler(pairs, k=4, n_draws=2, batch_size=1, seed=0)
    first, second = (
        [sampler.batch(number)["low"].numpy().tobytes() for number in range(start, start + total)]
        for start in (0, total)
    )
    assert len(set(first)) == total
    assert sorted(first) == sorted(second) and first != second


def test_a_share_of_the_grid_is_kept_and_the_first_draws_are_the_same_for_any_n(libraries, tmp_path):
    library = libraries[0]
    whole = write_pairs(tmp_path / "whole.npy", library, n_draws=1, fraction=1)
    assert 0.8 * len(library.corners) < whole <= len(library.corners)  # borders: two corners share a slab
    for n in (1, 2):
        count = write_pairs(tmp_path / f"{n}.npy", library, n_draws=n, fraction=0.125)
        assert count == pytest.approx(n * 0.125 * whole, abs=2)
    one, two = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in (1, 2))
    assert one.tobytes() == two[: len(one)].tobytes()


def test_patches_of_another_size_lie_about_the_same_places(libraries):
    for patch in (16, 48):
        sampler = StoredSampler(libraries, k=4, n_draws=2, batch_size=4, seed=1, patch=patch)
        low, high = simulate_batch(sampler.batch(0))
        assert low.shape[2:] == (patch, patch, patch // 4) and high.shape[2:] == (patch,) * 3
        assert own_place(low, high)[0] == list(range(4))
        fresh = DrawSampler(libraries, k=4, batch_size=4, degradation=Degradation(), seed=1, patch=patch)
        low, high = simulate_batch(fresh.batch(0))
        assert own_place(low, high)[0] == list(range(4))
    with pytest.raises(InputError, match="multiple of k"):
        StoredSampler(libraries, k=4, n_draws=1, batch_size=1, seed=0, patch=30)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no library", lambda b: b""])
def test_damaged_pairs_are_refused(libraries, tmp_path, damage):
    write_pairs(tmp_path / "x.npy", libraries[0], n_draws=1, fraction=0.02)
    (tmp_path / "x.npy").write_bytes(damage((tmp_path / "x.npy").read_bytes()))
    with pytest.raises(InputError, match=r"x\.npy"):
        read_pairs(tmp_path / "x.npy")


def test_draws_of_another_prior_or_factor_are_not_trained_on(libraries, pairs):
    """The model's card would tell of SNRs that the network has never seen."""
    same = {"n_draws": 1, "batch_size": 1, "seed": 0}
    for make, sources in ((StoredSampler, libraries), (PairSampler, pairs)):
        with pytest.raises(InputError, match="fixed-61-53"):
            make(sources, k=4, prior=PUBLISHED["fixed-61-53"], **same)
        with pytest.raises(InputError, match="k = 2"):
            make(sources, k=2, **same)


def test_what_a_plan_asks_for_decides_where_batches_come_from(libraries, pairs):
    plan = TrainingPlan(network_settings=TINY)
    stored = dataclasses.replace(plan, draws=2)
    assert isinstance(make_sampler(libraries, plan, seed=0), DrawSampler)
    assert isinstance(make_sampler(libraries, stored, seed=0), StoredSampler)
    assert isinstance(make_sampler(pairs, stored, seed=0), PairSampler)
    with pytest.raises(InputError, match="--draws N"):
        make_sampler(pairs, plan, seed=0)
    with pytest.raises(InputError, match="one kind"):
        make_sampler([*pairs, *libraries], stored, seed=0)
    shaded = dataclasses.replace(stored, degradation=Degradation(bias_amplitude=0.2))
    with pytest.raises(InputError, match="--draws fresh"):
        make_sampler(libraries, shaded, seed=0)
