"""Settings survive being written and read, and a mistake in a settings file is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqtflow.cli.parser import parse
from iqtflow.config import (
    EnhanceSettings,
    PathSettings,
    RunSettings,
    Settings,
    TrainSettings,
    format_settings,
    read_sections,
    read_settings,
    write_settings,
)
from iqtflow.utils.errors import UsageError

PATHS = PathSettings(bids_dir=Path("/data/in"), output_dir=Path("/data/out"), work_dir=Path("/scratch/w"))


@pytest.mark.parametrize(
    "settings",
    [
        Settings(paths=PATHS),  # with fresh draws, and values that are not set
        Settings(
            paths=PATHS,
            run=RunSettings(
                levels=("participant", "group"), mode="train", participant_labels=("01", "A"), mem_gb=7.5
            ),
            enhance=EnhanceSettings(model="aniso-k4"),
            train=TrainSettings(
                split=Path("/s.json"), slice_axes=("x", "y"), snr_scale=(0.5, 1.5), draws=8, steps=100
            ),
        ),
    ],
    ids=["defaults", "changed"],
)
def test_settings_come_back_as_they_were_written(tmp_path, settings):
    file = write_settings(settings, tmp_path / "settings.toml")
    assert read_settings(file) == settings
    assert format_settings(read_settings(file)) == file.read_text()


@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_name_of_a_model_survives(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("toml") / "settings.toml"
    settings = Settings(paths=PATHS, enhance=EnhanceSettings(model=name))
    assert read_settings(write_settings(settings, path)).enhance.model == name


def test_settings_cannot_be_changed_in_flight():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(paths=PATHS).run.nprocs = 4


@pytest.mark.parametrize(
    ("line", "value"),
    [("mem_gb = 8", {"mem_gb": 8.0}), ('participant_labels = ["sub-01"]', {"participant_labels": ("01",)})],
)
def test_a_value_of_a_settings_file_gets_the_setting_s_type(tmp_path, line, value):
    (tmp_path / "s.toml").write_text(f"[run]\n{line}\n")
    assert read_sections(tmp_path / "s.toml") == {"run": value}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train]\nfilter = 8\n", "'filter' in [train]"),
        ("[trian]\nfilters = 8\n", "'trian'"),
        ("filters = 8\n", "'filters'"),
        ("[train\n", "TOML"),
        ('[train]\nfilters = 8\n[run]\nmode = "train"\n', "bids_dir, output_dir, work_dir"),
        ('[enhance]\nmodel = "\xff"\n', "utf-8"),
        (None, "No such file"),
    ],
)
def test_a_mistake_in_a_settings_file_is_named(tmp_path, text, named):
    if text is not None:
        (tmp_path / "s.toml").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path / "s.toml")
    assert str(tmp_path / "s.toml") in str(caught.value) and named in str(caught.value)


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("train", 'filters = "8"', "a whole number"),
        ("train", "filters = true", "a whole number"),
        ("run", "force = 1", "true or false"),
        ("run", 'mode = "enhence"', "enhance, train, calibrate"),
        ("run", 'device = "gpu"', "auto, cpu, cuda"),
        ("run", "nprocs = 0", "from 1 up to 1024"),
        ("run", "nprocs = 99999999999", "from 1 up to 1024"),
        ("run", "mem_gb = nan", "above 0"),
        ("run", "seed = -1", "from 0 up to 2147483647"),
        ("run", "seed = 99999999999", "from 0 up to 2147483647"),
        ("run", "verbose = -5", "from 0"),
        ("run", "levels = []", "participant, group"),
        ("run", 'participant_labels = ["../x"]', "a BIDS label"),
        ("enhance", 'model = ""', "not empty"),
        ("segmentation", 'octave = ""', "not empty"),
        ("segmentation", 'octave = "a\\u0000b"', "a text"),
        ("train", "thickness_fraction = [0.5]", "two values"),
        ("train", "thickness_fraction = [0.5, 2.0]", "from 0.01 up to 1"),
        ("train", "snr_scale = [2.0, 1.0]", "the lower one first"),
        ("train", "learning_rate = inf", "a number above 0"),
        ("train", 'slice_axes = "z"', "x, y, z"),
        ("train", 'slice_axes = ["x", "x"]', "each once"),
        ("train", "upsampling_factor = 5", "2, 3, 4, 6, 8"),
        ("train", "draws = 0", 'from 1 or "fresh"'),
        ("train", 'draws = "some"', 'from 1 or "fresh"'),
        ("train", 'network_options = ["a"]', "NAME=VALUE"),
    ],
)
def test_a_value_of_a_settings_file_is_checked(tmp_path, section, line, expected):
    (tmp_path / "s.toml").write_text(f"[{section}]\n{line}\n")
    with pytest.raises(UsageError) as caught:
        parse(["in", "out", "participant", "--config-file", str(tmp_path / "s.toml")])
    said = str(caught.value)
    assert "s.toml" in said and line.split(" = ")[0] in said and f"in [{section}]" in said
    assert expected in said.partition("expected ")[2]
