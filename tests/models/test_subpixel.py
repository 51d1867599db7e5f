"""The sub-pixel U-Net: the same function on any piece of a volume, and how it is trained."""

from __future__ import annotations

import os
import shlex

import numpy as np
import pytest
import torch
from phantoms import make_brain
from training_phantoms import own_place, train_command

from iqtflow.cli.commands.train import main as train
from iqtflow.image.geometry import cubic_upsample
from iqtflow.models.model_file import load_model
from iqtflow.models.registry import build_network
from iqtflow.models.subpixel import from_cells, to_cells
from iqtflow.simulation.forward_model import contrast_ratios
from iqtflow.simulation.snr_prior import PUBLISHED
from iqtflow.training.library import read_library
from iqtflow.training.samplers import (
    Degradation,
    DrawSampler,
    place_patch,
    plane_matrices,
    resampling_matrix,
    simulate_batch,
)
from iqtflow.utils.errors import InputError

WIDE = {
    "zoom": (0.9, 1.5),
    "spacing_jitter": 0.15,
    "contrast_jitter": 0.1,
    "stripes": 0.05,
    "coarse_plane": (1.0, 2.0),
}
RECIPE = shlex.split(
    "--network subpixel-unet --network-option widths=[16,16] --network-option blocks=[1,1] --filters 16 "
    "--optimiser muon --warmup 2 --clip 1 --averaging 0.9 --background-weight 0.1 --zoom 0.9 1.5"
)


def small(k=4, **settings):
    return build_network("subpixel-unet", k=k, widths=(4, 8, 8), blocks=(1, 1, 1), **settings)


@pytest.mark.parametrize("k", [2, 3, 4, 6, 8])
def test_every_factor_maps_thick_slices_to_thin_ones(k):
    network = small(k, uncertainty=True)
    w, h, d = (2 * m for m in network.min_multiple)
    assert network(torch.rand(1, 1, w, h, d)).shape == (1, 2, w, h, k * d)


def test_cells_keep_each_voxel_in_its_place():
    """A thin volume cut into cells and shuffled back is the same volume, slices in their order."""
    thin = torch.rand(2, 1, 8, 6, 12)
    cells = thin.reshape(2, 1, 4, 2, 3, 2, 3, 4).permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(2, 16, 4, 3, 3)
    assert torch.equal(from_cells(cells, 4), thin)
    assert torch.equal(from_cells(to_cells(thin), 1), thin)


def test_untrained_it_is_the_cubic_spline():
    scan = np.random.default_rng(0).random((32, 32, 8), dtype=np.float32)
    with torch.no_grad():
        out = small()(torch.from_numpy(scan)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, cubic_upsample(scan, 4), atol=1e-5)


def test_a_constant_volume_has_no_border():
    """Borders are continued by their own values: padding by zeros would show at every face."""
    torch.manual_seed(0)
    network = small()
    torch.nn.init.normal_(network.head.weight)
    with torch.no_grad():
        out = network(torch.full((1, 1, 32, 32, 8), 0.7))
        # Within a cell of 2 x 2 x 4 thin voxels weights differ; all cells are alike.
        cell = out[:, :, 16:18, 16:18, 16:20]
    assert float(cell.std()) > 1e-3
    torch.testing.assert_close(out, cell.repeat(1, 1, 16, 16, 8), atol=1e-5, rtol=0)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="as many blocks as widths"):
        build_network("subpixel-unet", k=4, widths=(4, 8), blocks=(1,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"zoom": (0.0, 1.0)},
        {"zoom": (2.0, 1.0)},
        {"spacing_jitter": -0.1},
        {"stripes": float("nan")},
        {"coarse_plane": (0.9, 1.0)},
    ],
)
def test_a_degradation_that_cannot_be_simulated_is_refused(wrong):
    with pytest.raises(InputError, match=r"from [01]"):
        Degradation(**wrong)


def test_resampling_keeps_the_centre_and_the_mean():
    for zoom in (0.8, 1.0, 1.3):
        matrix = resampling_matrix(70, 48, zoom)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
        at = matrix @ np.arange(70)
        np.testing.assert_allclose(at, 34.5 + (np.arange(48) - 23.5) * zoom, atol=0.03)


@pytest.mark.parametrize("edge", [1.3, 1.6, 2.0])
def test_a_coarse_plane_loses_fine_detail_and_keeps_the_place_of_the_rest(edge):
    shrink, enlarge = plane_matrices(48, edge)
    there_and_back = enlarge @ shrink
    at = np.arange(48)

    def left(period: float) -> float:
        wave = np.exp(2j * np.pi * at / period)
        return (np.vdot(wave[8:-8], (there_and_back @ wave)[8:-8]) / 32).real

    assert left(16) > 0.85
    assert abs(left(2.2)) < 0.35
    np.testing.assert_allclose((there_and_back @ at)[6:-6], at[6:-6], atol=0.02)
    np.testing.assert_allclose(there_and_back.sum(axis=1), 1, atol=1e-5)


def test_coarse_planes_are_smooth_scans_of_the_same_place(libraries):
    """A third of the patches have them; noise is that of coarse voxels, so neighbours are alike."""
    sources = [read_library(p) for p in libraries]

    def steps(**settings):
        sampler = DrawSampler(
            sources, k=4, batch_size=24, degradation=Degradation(snr_scale=(0.3, 0.3), **settings), seed=1
        )
        low, high = simulate_batch(sampler.batch(0))
        assert own_place(low, high)[0] == list(range(24))
        return low.diff(dim=2).square().mean(dim=(1, 2, 3, 4))

    ratio = steps(coarse_plane=(2.0, 2.0), stripes=1e-9) / steps(stripes=1e-9)
    coarse = ratio < 0.7
    assert 3 <= int(coarse.sum()) <= 14
    torch.testing.assert_close(ratio[~coarse], torch.ones_like(ratio[~coarse]), atol=0.15, rtol=0)


def test_a_wider_degradation_shows_the_same_place_on_both_sides(libraries):
    sampler = DrawSampler(
        [read_library(p) for p in libraries], k=4, batch_size=8, degradation=Degradation(**WIDE), seed=1
    )
    low, high = simulate_batch(sampler.batch(0))
    assert own_place(low, high)[0] == list(range(8))


def test_what_is_off_changes_no_draw(libraries):
    """Batches of the paper's setting are those of versions that knew no wider one."""
    sources = [read_library(p) for p in libraries]
    sampler = DrawSampler(sources, k=4, batch_size=1, degradation=Degradation(), seed=1)
    rng = np.random.default_rng([1, 2, 0])
    library = sources[rng.integers(len(sources))]
    rng.integers(2)  # the slice axis
    place_patch(library, rng, 32)
    alpha = PUBLISHED["ibadan-0.36T"].sample(rng)
    expected = contrast_ratios(alpha, library.mean_wm, library.mean_gm)
    batch = sampler.batch(2)
    np.testing.assert_allclose(batch["ratios"][0], [expected.wm, expected.gm, expected.sigma], rtol=1e-6)


def test_libraries_without_a_brain_take_the_tissue_for_it(libraries, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(libraries[0], "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys() if name != "brain"}  # noqa: SIM118
        metadata = file.metadata()
    save_file(arrays, tmp_path / "old.safetensors", metadata)
    old, new = read_library(tmp_path / "old.safetensors"), read_library(libraries[0])
    brain = make_brain((64, 72, 66), seed=0).mask
    assert new.brain.dtype == np.uint8 and (new.brain > 0).sum() == brain.sum()
    assert ((old.brain > 0) == ((old.wm > 0) | (old.gm > 0))).all()


def test_an_interrupted_training_ends_with_the_same_averaged_weights(libraries, tmp_path):
    weights = []
    for name, stops in (("whole", (6,)), ("cut", (2, 6))):
        for steps in stops:
            command = train_command(libraries[:2], libraries[2:], tmp_path / name, *RECIPE, steps=steps)
            # A schedule that knows the end would differ between the two.
            command[command.index("cosine")] = "decay"
            assert train(command) == 0
        model = load_model(tmp_path / name / "model.safetensors")
        weights.append(model.members[0].state_dict())
    plan = model.card.training["plan"]
    assert model.card.whole and model.card["pass_bytes"]["bfloat16"] > 16
    assert plan["averaging"] == 0.9 and plan["degradation"]["zoom"] == [0.9, 1.5]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_average_of_weights_begins_with_the_weights(libraries, tmp_path):
    """After one step the average is still close to the network: a fixed decay would stay at the start."""
    first = train_command(libraries[:2], libraries[2:], tmp_path / "a", *RECIPE, steps=2)
    assert train(first) == 0
    average = load_model(tmp_path / "a" / "model.safetensors").members[0]
    checkpoint = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    head = checkpoint["network.head.weight"]
    assert float(head.abs().max()) > 0
    assert torch.allclose(average.head.weight, head, atol=float(head.abs().max()))
    assert float(average.head.weight.abs().max()) > 0.3 * float(head.abs().max())


def test_unknown_precision_is_refused_at_the_command_line(libraries, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(train_command(libraries[:2], libraries[2:], tmp_path, "--precision", "int8"))
    assert "bfloat16" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_fine_tuning_takes_widths_and_blocks_from_its_model(libraries, tmp_path):
    assert train(train_command(libraries[:2], libraries[2:], tmp_path / "a", *RECIPE, steps=1)) == 0
    first = tmp_path / "a" / "model.safetensors"
    options = ["--start-from", str(first), "--network", "subpixel-unet", "--filters", "16"]
    assert train(train_command(libraries[:2], libraries[2:], tmp_path / "b", *options, steps=1)) == 0
    kwargs = load_model(tmp_path / "b" / "model.safetensors").card["network"]["kwargs"]
    assert (kwargs["widths"], kwargs["blocks"]) == ([16, 16], [1, 1])
