"""The paper's cells on a machine without nibabel, in a given time (benchmarks/gpu_grid.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from iqtflow.training.library import read_library
from iqtflow.training.samplers import check_draws

ROOT = Path(__file__).parents[2]
DESIGN = """
extends = "gpu"
factors = [4]
split = { train = 1, validation = 1, evaluation = 1, seed = 0 }
run = ["1-aniso2-k4", "2-aniso2-const-k4", "2-aniso2-2-k4", "2-aniso2-inf-k4"]
[train]
filters = 2
batch_size = 2
steps = 2
steps_per_epoch = 1
validation_batches = 1
"""
#: What a machine with a GPU may lack.
MISSING = ("nibabel", "nipype", "pandas")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    for folder in (ROOT, ROOT / "benchmarks"):
        monkeypatch.syspath_prepend(folder)


@pytest.fixture
def arguments(libraries, tmp_path) -> list[str]:
    """Arguments for a tiny design, on phantoms."""
    (tmp_path / "tiny.toml").write_text(DESIGN)
    given = [*libraries, "--output", tmp_path / "out", "--work", tmp_path / "work", "--device", "cpu"]
    given += ["--preset", tmp_path / "tiny.toml", "--processes", 1, "--seconds", 600]
    return list(map(str, given))


def test_cells_are_trained_and_evaluated_in_several_calls(arguments, tmp_path, capsys):
    import gpu_grid

    gpu_grid.main([*arguments, "--seconds", "0"])
    assert capsys.readouterr().out.count("not begun") == 4

    # The first cell as on a machine with a GPU, without what it may lack.
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING})); import gpu_grid; gpu_grid.main()"
    path = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks")))
    command = [sys.executable, "-c", code, *arguments, "--cells", "1-aniso2-k4"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)
    lines = tmp_path / "out" / "results.jsonl"
    first = lines.read_text()
    assert (json.loads(first)["cell"], json.loads(first)["steps"]) == ("1-aniso2-k4", 2)

    gpu_grid.main(arguments)
    assert lines.read_text().startswith(first)
    cells = {cell["cell"]: cell for cell in map(json.loads, lines.read_text().splitlines())}
    assert list(cells) == ["1-aniso2-k4", "2-aniso2-const-k4", "2-aniso2-2-k4", "2-aniso2-inf-k4"]
    # The paper's network for a fixed SNR is also evaluated on a variable one.
    models = [cell["model"] for cell in cells.values()]
    assert models[0] == models[1] != models[2]
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    for cell in cells.values():
        assert [f"sub-{record['subject']}" for record in cell["records"]] == split["evaluation"]
        # Two steps teach a network nothing; the cubic spline shows the brain.
        methods = cell["records"][0]["methods"]
        assert 15 < methods["spline"]["psnr"] < 60
        assert 0.5 < methods["spline"]["mssim"] < 1
        assert methods["iqt"]["psnr"] < methods["spline"]["psnr"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 2-aniso2-inf-k4 | ")
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    assert "More draws are better" in (tmp_path / "out" / "results.md").read_text()


def test_cells_are_trained_at_the_same_time(arguments, tmp_path):
    import gpu_grid

    names = ["1-aniso2-k4", "2-aniso2-2-k4"]
    gpu_grid.main([*arguments, "--at-once", "2", "--cells", *names])
    cells = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {cell["cell"]: cell["steps"] for cell in cells} == dict.fromkeys(names, 2)


def test_a_training_goes_on_where_the_time_was_over(arguments, tmp_path, monkeypatch):
    import gpu_grid

    class Short(gpu_grid.Clock):
        """Time until the second epoch: asked before the training, at its first line, after each epoch."""

        asked = 0

        def require(self, seconds: float = 0.0) -> None:
            Short.asked += 1
            if Short.asked == 4:
                raise gpu_grid.OutOfTime

    arguments += ["--cells", "2-aniso2-inf-k4"]
    with monkeypatch.context() as patch:
        patch.setattr(gpu_grid, "Clock", Short)
        gpu_grid.main(arguments)
    assert not (tmp_path / "out" / "results.jsonl").exists()
    gpu_grid.main(arguments)
    result = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert (result["steps"], result["epochs"], result["interruptions"]) == (2, 2, 1)


@pytest.mark.parametrize("axis", [0, 2])
def test_draws_are_those_of_the_simulator(libraries, axis):
    """For an image in the simulator's canonical orientation: left, anterior, superior."""
    from gpu_grid import simulate

    from iqtflow.simulation.artifacts import Extras
    from iqtflow.simulation.simulate import draw_scan, plan_slices, prepare_subject, realise
    from iqtflow.simulation.snr_prior import PUBLISHED

    library, prior = read_library(libraries[0]), PUBLISHED["ibadan-0.36T"]
    draw = simulate(library, axis=axis, k=4, prior=prior, seed=3)
    stack = plan_slices(1.0, axis=axis, k=4)
    maps = [np.asarray(one) / np.float32(255) for one in (library.wm, library.gm)]
    image = np.asarray(library.intensity, np.float32)
    subject = prepare_subject(image, maps, np.diag([-1.0, 1, 1, 1]), stack)
    expected = realise(subject, draw_scan(prior, Extras(), stack, seed=draw.record["Seed"]))
    np.testing.assert_allclose(draw.volume, expected, atol=2e-3)


def test_stored_draws_suit_the_sampler(libraries, tmp_path):
    from gpu_grid import prepare

    from iqtflow.simulation.snr_prior import PUBLISHED
    from iqtflow.training.library import GridSettings

    prior = PUBLISHED["ibadan-0.36T"]
    path = prepare(libraries[0], tmp_path / "8" / "sub-0_patches.safetensors", 8, prior, 2, GridSettings())
    check_draws(read_library(path), k=8, n_draws=2, prior=prior)
