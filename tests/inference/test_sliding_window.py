"""Ways through a volume: one pass, blended tiles, the paper's patches; what they need, how they differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nilearn import datasets
from phantoms import make_brain
from small_models import make_model

from iqtflow.evaluation.metrics import psnr
from iqtflow.image.geometry import cubic_upsample
from iqtflow.image.intensity import intensity_scale
from iqtflow.inference.predict import enhance_volume
from iqtflow.inference.sliding_window import choose_plan
from iqtflow.models.model_file import load_model
from iqtflow.utils.errors import InputError
from iqtflow.utils.system import fast_precision, peak_memory_gb

torch.set_num_threads(1)
SHAPE = (272, 320, 68)  # a padded scan of 260 x 311 x 65 voxels


def noise() -> np.ndarray:
    return 1 + np.random.default_rng(0).random((40, 48, 10)).astype(np.float32)


@pytest.mark.parametrize(
    ("context", "tiling", "memory", "whole"),
    [
        ("whole", "auto", 100.0, True),
        ("whole", "auto", 2.0, False),
        ("whole", "tiles", 100.0, False),
        ("patch", "auto", 100.0, False),
        ("patch", "whole", 100.0, True),
        ("patch", "paper", 100.0, False),
    ],
)
def test_one_pass_is_made_when_the_networks_know_it_and_it_fits_or_when_asked_for(
    context, tiling, memory, whole
):
    plan = choose_plan(SHAPE, make_model(filters=16, context=context), tiling=tiling, max_memory_gb=memory)
    assert plan.whole is whole
    assert plan.predicted_gb <= memory
    assert ("one pass" in plan.words) is whole


@pytest.mark.parametrize(
    ("tiling", "words"),
    [("whole", r"[0-9.]+ GB needed, 2.0 GB may be"), ("spiral", "one of auto, whole, tiles, paper")],
)
def test_a_pass_that_does_not_fit_and_an_unknown_tiling_are_refused(tiling, words):
    with pytest.raises(InputError, match=words):
        choose_plan(SHAPE, make_model(filters=16), tiling=tiling, max_memory_gb=2.0)


def test_the_papers_tiling_steps_by_half_a_patch_and_leaves_nothing_out():
    plan = choose_plan(SHAPE, make_model(context="patch"), tiling="paper", max_memory_gb=9.0)
    assert (plan.tile, plan.step) == ((32, 32, 8), (16, 16, 4))
    assert plan.uniform and not plan.skip_air
    ours = choose_plan(SHAPE, make_model(context="patch"), max_memory_gb=9.0)
    assert ours.skip_air and not ours.uniform


def test_an_ensemble_needs_room_for_its_spread():
    """Running mean and squares from the third network on, however many there are; one more when mirrored."""
    volume = np.prod(SHAPE) * 4 * 4 / 1e9

    def needed(n_members: int, *, mirrored: bool = False) -> float:
        model = make_model(n_members, context="patch")
        return choose_plan(SHAPE, model, max_memory_gb=9.0, mirrored=mirrored).predicted_gb / volume

    assert needed(3) - needed(1) == pytest.approx(2, abs=0.01)
    assert needed(5) == needed(3)
    assert needed(1, mirrored=True) - needed(1) == pytest.approx(1, abs=0.01)


def test_one_pass_and_blended_tiles_of_the_shipped_model_are_the_same():
    """In the template's brain; in real ones they differ by 0.03 % of the range and 0.03 dB."""
    template = datasets.load_mni152_template(resolution=1).get_fdata(dtype=np.float32)
    truth = 1000 * template[32:168, 70:150, 55:135]  # two tiles
    thick = truth.reshape(136, 80, 20, 4).mean(axis=3)
    scan = (thick + np.random.default_rng(0).normal(0, 15, thick.shape)).astype(np.float32)
    model = load_model("iqt-k4")
    scale = intensity_scale(scan[truth[..., ::4] > 0])
    whole, tiles = (
        enhance_volume(scan, model, scale=scale, tiling=tiling, precision="float32").mean
        for tiling in ("whole", "tiles")
    )
    inside = truth > 0
    assert 0 < np.abs(whole - tiles)[inside].mean() < 0.003 * np.ptp(truth)
    assert abs(psnr(truth, whole, inside) - psnr(truth, tiles, inside)) < 0.2


def test_one_pass_of_a_network_trained_on_patches_comes_with_a_warning():
    model = make_model(context="patch")
    result = enhance_volume(np.ones((20, 20, 6), np.float32), model, scale=1.0, tiling="whole")
    assert "trained on patches" in " ".join(result.warnings)


def test_what_is_taken_is_said_with_the_memory_that_is_there():
    said = []
    result = enhance_volume(np.ones((20, 20, 6), np.float32), make_model(), scale=1.0, report=said.append)
    assert len(said) == 1
    assert "GB predicted" in said[0] and "GB RAM free" in said[0] and "one pass" in said[0]
    assert result.details["FreeMemoryGB"] > 0
    assert 0 < result.details["PredictedMemoryGB"] < peak_memory_gb() + 1


@pytest.mark.parametrize("axis", [0, 2])
def test_with_mirrored_averaging_a_mirrored_head_gives_the_mirrored_estimate(axis):
    scan = noise()
    model = make_model()
    one = enhance_volume(scan, model, scale=1.0, mirror_axis=axis, precision="float32")
    other = enhance_volume(
        np.flip(scan, axis).copy(), model, scale=1.0, mirror_axis=axis, precision="float32"
    )
    np.testing.assert_allclose(np.flip(other.mean, axis), one.mean, atol=1e-5)
    plain = enhance_volume(scan, model, scale=1.0, precision="float32")
    assert plain.std is None
    assert np.abs(plain.mean - one.mean).max() > 1e-3
    assert one.details["MirroredAveraging"] is True


def test_a_single_network_and_its_mirrored_answer_have_a_spread():
    scan = noise()
    model = make_model()
    plain, mirrored = (
        enhance_volume(scan, model, scale=1.0, mirror_axis=axis, precision="float32") for axis in (None, 0)
    )
    # The mean of two answers lies half of their difference from each; two values' std is that times sqrt(2).
    np.testing.assert_allclose(mirrored.std, np.sqrt(2) * np.abs(mirrored.mean - plain.mean), atol=1e-4)


def test_an_ensemble_with_mirrored_averaging_has_the_spread_of_its_networks():
    scan = noise()
    model = make_model(3)
    together = enhance_volume(scan, model, scale=1.0, mirror_axis=0, precision="float32")
    alone = [
        enhance_volume(
            scan, type(model)(model.card, [m], model.path, ""), scale=1.0, mirror_axis=0, precision="float32"
        ).mean
        for m in model.members
    ]
    np.testing.assert_allclose(together.std, np.std(alone, axis=0, ddof=1), atol=1e-4)
    np.testing.assert_allclose(together.mean, np.mean(alone, axis=0), atol=1e-5)


class Cancelling(torch.nn.Module):
    """Subtracts a thousand times its input from a thousand times its input: nothing is left of it in half
    precision.
    """

    k, min_multiple = 4, (16, 16, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 1, 1, bias=False)
        torch.nn.init.constant_(self.conv.weight, 1001.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.conv(x).float() - 1000 * x).repeat_interleave(4, dim=-1)


def test_half_precision_is_not_used_where_it_changes_the_answer():
    model = make_model()
    model.members[:] = [Cancelling().eval().requires_grad_(False)]
    scan = noise()
    result = enhance_volume(scan, model, scale=1.0, precision="bfloat16")
    assert result.details["Precision"] == "float32"
    assert "bfloat16" in " ".join(result.warnings)
    np.testing.assert_allclose(result.mean[:, :, ::4], scan, atol=1e-3)


@pytest.mark.parametrize(("instructions", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_half_precision_on_a_processor_is_for_those_that_multiply_it(monkeypatch, instructions, precision):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: instructions, raising=False)
    assert fast_precision("cpu") == precision
    assert fast_precision("cuda") == "bfloat16"


def test_an_erased_background_is_cut_off_for_the_networks_and_put_back():
    """An untrained network adds nothing to the spline: what comes out is the spline of the whole scan."""
    thick = make_brain((40, 40, 32)).intensity.reshape(40, 40, 8, 4).mean(axis=3)
    scan = np.pad(thick, ((40, 10), (0, 30), (6, 3)))
    result = enhance_volume(scan, make_model(trained=0), scale=1000.0)
    spline = np.clip(cubic_upsample(scan, 4), 0, None)
    assert result.mean.shape == spline.shape
    np.testing.assert_allclose(result.mean, spline, atol=0.02 * scan.max())
    assert "64 x 64 x 64" in result.details["Tiling"]
