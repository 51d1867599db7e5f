"""Settings survive being written and read, and a mistake in a settings file is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from iqtflow.errors import UsageError

PATHS = PathSettings(bids_dir=Path("/data/in"), output_dir=Path("/data/out"), work_dir=Path("/scratch/w"))


def test_settings_come_back_as_they_were_written(tmp_path):
    settings = Settings(
        paths=PATHS,
        run=RunSettings(
            levels=("participant", "group"), mode="train", participant_labels=("01", "A"), mem_gb=7.5
        ),
        enhance=EnhanceSettings(model="aniso-k4"),
        train=TrainSettings(
            split=Path("/data/split.json"), slice_axes=("x", "y"), snr_scale=(0.5, 1.5), draws=8, steps=100
        ),
    )
    assert read_settings(write_settings(settings, tmp_path / "settings.toml")) == settings


def test_fresh_draws_and_unset_values_come_back(tmp_path):
    settings = Settings(paths=PATHS)
    back = read_settings(write_settings(settings, tmp_path / "settings.toml"))
    assert back == settings
    assert back.train.draws == "fresh"
    assert back.train.steps is None


@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_of_a_model_survives(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("toml") / "settings.toml"
    settings = Settings(paths=PATHS, enhance=EnhanceSettings(model=name))
    assert read_settings(write_settings(settings, path)).enhance.model == name


def test_the_same_settings_give_the_same_bytes():
    assert format_settings(Settings(paths=PATHS)) == format_settings(Settings(paths=PATHS))


def test_settings_cannot_be_changed_in_flight():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(paths=PATHS).run.nprocs = 4


def test_a_whole_number_serves_where_a_number_is_wanted(tmp_path):
    (tmp_path / "s.toml").write_text("[run]\nmem_gb = 8\n")
    assert read_sections(tmp_path / "s.toml") == {"run": {"mem_gb": 8.0}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train]\nfilter = 8\n", "'filter' in [train]"),
        ("[trian]\nfilters = 8\n", "'trian'"),
        ("filters = 8\n", "'filters'"),
        ('[train]\nfilters = "8"\n', "a whole number"),
        ("[train]\nfilters = true\n", "a whole number"),
        ("[run]\nforce = 1\n", "true or false"),
        ('[train]\ndraws = "some"\n', 'a whole number or "fresh"'),
        ('[train]\nslice_axes = "z"\n', "a list, each a text"),
        ("[train\n", "TOML"),
        ('[train]\nfilters = 8\n[run]\nmode = "train"\n', "bids_dir, output_dir, work_dir"),
    ],
)
def test_a_mistake_in_a_settings_file_is_named(tmp_path, text, named):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_settings(tmp_path / "s.toml")
    assert named in str(caught.value)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="absent"):
        read_settings(tmp_path / "absent.toml")
