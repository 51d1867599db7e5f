"""A training survives kills, full disks, missing files and bad numbers; several devices share it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from clinics import ENVIRONMENT, python
from safetensors.torch import load_file
from training_phantoms import TINY, train_command, write_libraries

from iqtflow.cli.commands.train import main as train
from iqtflow.training.library import read_library
from iqtflow.training.plan import TrainingPlan
from iqtflow.training.trainer import train_member
from iqtflow.utils.errors import EXIT_CANTCREAT, EXIT_USAGE, InputError, IQTFlowError


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return write_libraries(tmp_path_factory.mktemp("libraries"), n_draws=1)


@pytest.fixture(scope="module")
def undisturbed(libraries, tmp_path_factory):
    """Weights after six epochs in one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(train_command(libraries[:2], libraries[2:], folder)) == 0
    return load_file(folder / "model.safetensors")


def start(arguments, **options):
    command = [sys.executable, "-m", "iqtflow.cli.commands.train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes, **options)


def train_both(libraries, plan, folder, report=lambda line: None):
    one, two = ([read_library(path)] for path in libraries[:2])
    return train_member(one, two, plan, checkpoint_dir=folder, report=report)


def small_plan(**settings):
    usual = {"batch_size": 1, "patience": 0, "validation_batches": 1}
    return TrainingPlan(network_settings=TINY, **{**usual, **settings})


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_training_killed_at_random_instants_ends_with_the_weights_of_an_undisturbed_one(
    libraries, undisturbed, tmp_path
):
    """Again and again, wherever it is: while starting, within an epoch, while a checkpoint is written."""
    arguments = train_command(libraries[:2], libraries[2:], tmp_path)
    last = tmp_path / "checkpoints/last.ckpt"
    seed = time.time_ns()
    print("seed of the instants:", seed)  # pytest shows it when the test fails
    rng = np.random.default_rng(seed)
    kills, to_continue = 0, 0
    while kills < 2 or to_continue < 1 or (kills < 6 and to_continue < 3):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = start(arguments)
        deadline = time.monotonic() + 120
        wait_for_progress = rng.random() < 0.75
        while wait_for_progress and process.poll() is None and time.monotonic() < deadline:
            if last.exists() and last.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5 if wait_for_progress else 5))
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was faster: from the start
            shutil.rmtree(tmp_path / "checkpoints")
            (tmp_path / "model.safetensors").unlink()
            to_continue = 0
            continue
        assert process.returncode == -signal.SIGKILL
        kills += 1
        if last.exists() and last.stat().st_mtime_ns != before:
            to_continue += torch.load(last, weights_only=True)["global_step"] < 12
    assert kills >= 2 and to_continue >= 1
    assert train(arguments) == 0
    assert same(load_file(tmp_path / "model.safetensors"), undisturbed)
    assert not list((tmp_path / "checkpoints").glob(".*.partial"))
    log = (tmp_path / "checkpoints/training.log").read_text()
    assert log.count("resuming after step") >= to_continue


def test_the_same_command_after_the_end_changes_nothing(libraries, undisturbed, tmp_path, capsys):
    arguments = train_command(libraries[:2], libraries[2:], tmp_path)
    assert train(arguments) == 0
    first = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    assert train(arguments) == 0
    assert same(load_file(tmp_path / "model.safetensors"), undisturbed)
    assert len(first) > 0
    assert "epoch 7" not in capsys.readouterr().out


def test_early_stopping_is_not_undone_by_running_again(libraries, tmp_path):
    """Without the memory of its patience, a training that had stopped would go on for another epoch."""
    plan = small_plan(steps_per_epoch=1, max_epochs=9, patience=1, learning_rate=0.5)
    first = train_both(libraries, plan, tmp_path)
    assert first.facts["epochs"] < 9
    again = train_both(libraries, plan, tmp_path)
    assert again.facts["epochs"] == first.facts["epochs"]
    assert same(again.state_dict, first.state_dict)
    longer = train_both(libraries, dataclasses.replace(plan, patience=3), tmp_path)
    assert longer.facts["epochs"] > first.facts["epochs"]


def test_an_epoch_that_the_steps_do_not_fill_is_validated_too(libraries, tmp_path):
    member = train_both(libraries, small_plan(steps=5, steps_per_epoch=3), tmp_path)
    assert [row["step"] for row in member.curves] == [3, 5]


@pytest.mark.slow
def test_a_full_disk_is_named_and_costs_nothing(libraries, undisturbed, tmp_path):
    """The process may write files of 100 kB only, less than a checkpoint: as on a disk that is full."""
    short = train_command(libraries[:2], libraries[2:], tmp_path, steps=12)
    process = start(short)
    last = tmp_path / "checkpoints/last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    whole = last.read_bytes()
    limit = 100_000
    assert len(whole) > limit

    full = start(short, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = full.communicate(timeout=300)
    assert full.returncode == EXIT_CANTCREAT, errors
    assert ".ckpt: found a full disk" in errors and "Free some space" in errors
    assert last.read_bytes() == whole
    assert train(short) == 0
    assert same(load_file(tmp_path / "model.safetensors"), undisturbed)


def test_a_library_that_vanishes_during_training_is_named_and_nothing_is_lost(
    libraries, undisturbed, tmp_path, capsys
):
    moved = [shutil.copy(path, tmp_path) for path in libraries]
    arguments = train_command(moved[:2], moved[2:], tmp_path)
    process = start(arguments)
    last = tmp_path / "checkpoints/last.ckpt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.01)
    os.rename(moved[1], tmp_path / "elsewhere")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "sub-1_patches.safetensors: found" in errors and "Put it back" in errors

    assert train(arguments) == 1  # at the start it is missed, too
    assert "sub-1_patches.safetensors" in capsys.readouterr().err
    os.rename(tmp_path / "elsewhere", moved[1])
    assert train(arguments) == 0
    assert same(load_file(tmp_path / "model.safetensors"), undisturbed)


@pytest.fixture
def begun(libraries, tmp_path):
    arguments = train_command(libraries[:2], libraries[2:], tmp_path, steps=2)
    assert train(arguments) == 0
    return tmp_path


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--learning-rate", "0.1"], "learning_rate: 0.001 -> 0.1"),
        (["--filters", "3"], "network_settings.filters: 2 -> 3"),
        (["--prior", "fixed-61-53"], "degradation.prior.name: ibadan-0.36T -> fixed-61-53"),
        (["--draws", "1"], "draws: fresh -> 1"),
        (["--network", "sru-net"], "network: aniso-unet -> sru-net"),
    ],
)
def test_checkpoints_of_other_settings_are_named_and_kept(libraries, begun, capsys, options, named):
    kept = (begun / "checkpoints/last.ckpt").read_bytes()
    arguments = train_command(libraries[:2], libraries[2:], begun, *options)
    assert train(arguments) == 1
    assert named in capsys.readouterr().err
    assert (begun / "checkpoints/last.ckpt").read_bytes() == kept


def test_libraries_that_were_made_anew_are_not_the_old_ones(libraries, begun, tmp_path, capsys):
    other = write_libraries(tmp_path / "other", subjects=2, k=2)
    assert train(train_command(other, libraries[2:], begun)) == 1
    assert "train.sub-0_patches.safetensors" in capsys.readouterr().err


def altered(path, *, keep_digest=False, **parts):
    """Write a checkpoint again with other parts; without a digest, as older versions did."""
    content, mark, digest = path.read_bytes().rpartition(b"iqtflow-sha256:")
    assert mark and len(digest) == 64
    checkpoint = torch.load(io.BytesIO(content), weights_only=True)
    torch.save({key: value for key, value in {**checkpoint, **parts}.items() if value is not None}, path)
    if keep_digest:
        path.write_bytes(path.read_bytes() + mark + digest)


def flip(path):
    """Change one bit; PyTorch does not read the checksums of its own format."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (flip, "altered or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "last.ckpt: found"),
        (lambda path: torch.save([1, 2], path), "found a list"),
        (lambda path: torch.save(torch.zeros(3), path), "found a Tensor"),
        (lambda path: torch.save({}, path), "a file without state_dict"),
        (lambda path: altered(path, iqtflow=None), "a file without iqtflow"),
        (lambda path: altered(path, global_step="many"), "a file without global_step"),
        (lambda path: altered(path, state_dict={"network.x": torch.zeros(3)}), "weights of another network"),
        (lambda path: altered(path, state_dict={"network.x": torch.tensor(np.nan)}), "not finite"),
        (lambda path: altered(path, keep_digest=True, epoch=7), "altered or damaged"),
        (lambda path: path.write_bytes(b""), "last.ckpt: found"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_checkpoint_that_is_something_else_is_refused_with_a_sentence(
    libraries, begun, capsys, write, words
):
    write(begun / "checkpoints/last.ckpt")
    assert train(train_command(libraries[:2], libraries[2:], begun, steps=4)) == 1
    message = capsys.readouterr().err
    assert words in message and "delete last.ckpt to begin again" in message


def test_a_checkpoint_of_an_older_version_without_a_digest_is_taken_up(libraries, begun, capsys):
    altered(begun / "checkpoints/last.ckpt")
    assert train(train_command(libraries[:2], libraries[2:], begun, steps=4)) == 0
    assert "resuming after step" in capsys.readouterr().out


def test_a_folder_with_files_of_somebody_else_is_no_place_for_checkpoints(libraries, tmp_path, capsys):
    mine = tmp_path / "checkpoints/curves.csv"
    mine.parent.mkdir()
    mine.write_text("subject,age\n")
    assert train(train_command(libraries[:2], libraries[2:], tmp_path, steps=4)) == 1
    assert "curves.csv" in capsys.readouterr().err
    assert mine.read_text() == "subject,age\n"


class Spoilt:
    """A sampler whose batches number `first` and later are spoilt by a factor."""

    def __init__(self, sampler, first, factor):
        self.sampler, self.first, self.factor = sampler, first, factor

    def batch(self, number, **share):
        batch = self.sampler.batch(number, **share)
        if number >= self.first:
            batch["scale"] = batch["scale"] / self.factor
        return batch


@pytest.mark.parametrize(
    "factor",
    [
        pytest.param(float("nan"), id="loss and gradient not a number"),
        pytest.param(1e25, id="loss infinite, gradient finite or not"),
    ],
)
def test_steps_that_are_not_finite_are_left_out_and_in_the_end_stop_training(
    libraries, tmp_path, monkeypatch, factor
):
    """Weights and running statistics stay as they were before the first bad batch, and the best ones are on
    the disk.
    """
    import iqtflow.training.trainer as module

    plan = small_plan(batch_size=2, steps=40, steps_per_epoch=4)
    make = module.make_sampler

    def spoilt(sources, plan, *, seed, **options):
        sampler = make(sources, plan, seed=seed, **options)
        return Spoilt(sampler, 4, factor) if seed == plan.seed else sampler

    train_both(libraries, dataclasses.replace(plan, steps=4), tmp_path / "good")
    monkeypatch.setattr(module, "make_sampler", spoilt)
    lines = []
    with pytest.raises(IQTFlowError, match=r"21 steps with a loss or gradient .* best weights .* kept"):
        train_both(libraries, plan, tmp_path / "bad", lines.append)
    best, reference = (
        torch.load(tmp_path / name / "best.ckpt", weights_only=True)["state_dict"] for name in ("bad", "good")
    )
    assert same(best, reference)
    assert any("4 steps left out as not finite" in line for line in lines)
    last = torch.load(tmp_path / "bad/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in last.values())


def test_a_gradient_that_is_not_finite_is_caught_though_the_loss_is(libraries, tmp_path, monkeypatch):
    """The square root of a mean of squares has an infinite slope at 0, where the loss is 0."""
    import iqtflow.training.module as loop

    monkeypatch.setattr(
        loop,
        "simulate_batch",
        lambda batch, **_: (torch.zeros(1, 1, 32, 32, 8), torch.zeros(1, 1, 32, 32, 32)),
    )
    losses = loop.TrainingModule.losses

    def root(module, network, batch):
        objective, loss = losses(module, network, batch)
        return objective.sqrt(), loss

    monkeypatch.setattr(loop.TrainingModule, "losses", root)
    with pytest.raises(IQTFlowError, match="not finite"):
        train_both(libraries, small_plan(steps=30, steps_per_epoch=2), tmp_path)


def test_no_subject_may_be_on_both_sides_even_under_two_names(libraries, tmp_path):
    """The label in the library counts, not the file's name."""
    renamed = shutil.copy(libraries[0], tmp_path / "sub-9_patches.safetensors")
    with pytest.raises(InputError, match="0 in training and in validation"):
        train_both([libraries[0], renamed], small_plan(), tmp_path)


def test_curves_for_tensorboard(libraries, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = ["--tensorboard", str(tmp_path / "board")]
    assert train(train_command(libraries[:2], libraries[2:], tmp_path, *board, steps=4)) == 0
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    rows = (tmp_path / "checkpoints/curves.csv").read_text().splitlines()[1:]
    losses = [event.value for event in events.Scalars("loss/validation")]
    assert losses == pytest.approx([float(row.split(",")[2]) for row in rows], rel=1e-5)
    assert json.loads((tmp_path / "checkpoints/settings.json").read_text())["batch_size"] == 2


# --- several devices ---

#: A network without batch normalisation: what several processes make of a batch is exactly what one makes.
PLAIN = """
from torch import nn

class Plain(nn.Module):
    min_multiple = (1, 1, 1)

    def __init__(self, k, filters):
        super().__init__()
        self.k = k
        thin = nn.ConvTranspose3d(filters, 1, (1, 1, k), (1, 1, k))
        self.layers = nn.Sequential(nn.Conv3d(1, filters, 3, padding=1), nn.ReLU(), thin)

    def forward(self, x):
        return self.layers(x)
"""


def curves(libraries, folder, *options, path=None):
    arguments = train_command(libraries[:2], libraries[2:], folder, "--batch-size", "8", *options, steps=8)
    environment = ENVIRONMENT if path is None else {**ENVIRONMENT, "PYTHONPATH": os.fspath(path)}
    run = python("-m", "iqtflow.cli.commands.train", *arguments, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("epoch 4:") == 1  # said once, not by each process
    assert (folder / "model.safetensors").exists()
    with open(folder / "checkpoints/curves.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return run.stdout, [float(row[name]) for row in rows for name in ("train_loss", "val_loss")]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(libraries, tmp_path):
    (tmp_path / "plain_network.py").write_text(PLAIN)
    own = ["--network", "plain_network:Plain"]
    _, alone = curves(libraries, tmp_path / "one", *own, path=tmp_path)
    said, shared = curves(libraries, tmp_path / "two", *own, "--devices", "2", path=tmp_path)
    assert "2 x cpu" in said
    assert shared == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_batch_normalisation_by_device_bends_the_curve_but_little(libraries, tmp_path):
    """Each process normalises by its own 4 of the 8 patches."""
    _, alone = curves(libraries, tmp_path / "one")
    _, shared = curves(libraries, tmp_path / "two", "--devices", "2")
    assert shared != alone
    assert shared == pytest.approx(alone, rel=0.1)


def test_a_batch_that_devices_cannot_share_is_refused(libraries, tmp_path, capsys):
    arguments = train_command(libraries[:2], libraries[2:], tmp_path, "--batch-size", "5", "--devices", "2")
    assert train(arguments) == EXIT_USAGE
    assert "5 patches for 2 devices" in capsys.readouterr().err


def test_a_single_process_within_a_job_of_several_tasks_stays_alone(libraries, tmp_path, monkeypatch):
    """As when a job's script has asked for eight tasks, and starts the command once."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8"}
    for name, value in {**job, "SLURM_NODELIST": "node[1-2]", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    assert train(train_command(libraries[:2], libraries[2:], tmp_path, steps=2)) == 0
    assert (tmp_path / "model.safetensors").exists()


def test_on_several_computers_slurm_starts_one_process_for_each_device(libraries):
    from iqtflow.interfaces.train import TrainModel

    given = {"train_libraries": libraries[:2], "validation_libraries": libraries[2:]}
    one = TrainModel(**given, devices=4).cmdline
    several = TrainModel(**given, devices=4, num_nodes=2).cmdline
    assert "srun" not in one and "--devices 4" in one
    assert several.startswith("srun --nodes=2 --ntasks-per-node=4 ") and "--num-nodes 2" in several
