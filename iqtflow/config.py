"""Settings of one run: one frozen dataclass per section, written to and read from TOML.

Defaults live here and nowhere else; the command line shows them and overrides them. No workflow reads
settings from a global: they are passed along.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import read_text, write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MODES = ("enhance", "train", "calibrate")  #: what can be done with a data set
LEVELS = ("participant", "group")  #: BIDS-App analysis levels
AXES = ("x", "y", "z")  #: voxel axes of an image, first to third
SCHEDULES = ("decay", "cosine")  #: learning rate: the paper's slow decay, or a cosine to zero
ENGINES = ("auto", "spm", "ants", "derivatives")  #: what can make tissue maps
LOSSES = ("mse", "l1")  #: what training minimises
#: How large an estimate's error is to be expected: learned beside it, learned alone, or not.
UNCERTAINTIES = ("learn", "only", "none")
FACTORS = (2, 3, 4, 6, 8)  #: up-scaling factors that there are networks for
#: Largest imperfections of a simulated scan, by setting: beyond them nothing of a head is left to see. Slices
#: three times as wide as stated, a blur or a shift of half a head, and a shading by a factor of 20.
IMPERFECTIONS = {
    "fwhm_jitter": 3.0,
    "slice_offset_mm": 100.0,
    "inplane_fwhm_mm": 100.0,
    "bias_amplitude": 3.0,
}
SNR_LIMITS = (0.1, 1e6)  #: of a tissue: below, no head can be told from noise; above, there is no noise
SNR_SCALE_LIMITS = (0.01, 100.0)  #: of a factor on the SNR
PATCH_LIBRARIES = ("volumes", "pairs")  #: memory-mapped volumes and an index, or pairs written out
#: Settings of training that only the participant level reads.
PARTICIPANT = ("slice_axes", "patch_step", "background_limit", "patch_fraction")
#: Settings of fresh draws. Stored scans are always simulated as in the paper.
FRESH_ONLY = ("thickness_fraction", "snr_scale", "bias_amplitude")


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """Where things are. All three are absolute."""

    bids_dir: Path  #: root of the input data set; never written to
    output_dir: Path  #: root of the derivatives
    work_dir: Path  #: intermediate results; safe to delete, costly to lose


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is run, on whom, and with which resources."""

    levels: tuple[str, ...] = ("participant",)  #: analysis levels, in the order in which they are run
    mode: str = "enhance"  #: one of :data:`MODES`
    participant_labels: tuple[str, ...] = ()  #: subject labels without ``sub-``; empty means all
    session_labels: tuple[str, ...] = ()  #: session labels without ``ses-``; empty means all
    nprocs: int = 1  #: processes at a time, over all nodes
    omp_nthreads: int = 1  #: threads that one node may use
    mem_gb: float = 4.0  #: memory that all running nodes may claim together, in GB
    low_mem: bool = False  #: take less memory and more time
    device: str = "cpu"  #: "cpu" or "cuda", resolved once on the command line
    n_gpu_procs: int | None = None  #: GPU jobs at a time; None: one for each GPU
    use_plugin: Path | None = None  #: YAML file that names a cluster's scheduler; None runs here
    seed: int = 0  #: seed of everything random
    force: bool = False  #: process near-isotropic scans too, instead of skipping them
    stop_on_first_crash: bool = False  #: stop everything when one subject fails
    write_graph: bool = False  #: draw each graph into the work directory before it runs
    resource_monitor: bool = False  #: record memory and processor use of every step into the work directory
    verbose: int = 0  #: 0: progress; 1: what each node does; 2: debugging


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """How the scans are found."""

    filter_file: Path | None = None  #: JSON for :func:`iqtflow.bids.index.read_filters`; None takes all
    database_dir: Path | None = None  #: folder of pybids' index, made when there is none; None keeps no index
    skip_validation: bool = False  #: the data set is not looked over before the run


@dataclass(frozen=True, kw_only=True)
class EnhanceSettings:
    """Image quality transfer of low-field scans."""

    model: str | None = None  #: name of a shipped model, or path of one; None chooses by upsampling factor
    contrast: str = "T1w"  #: BIDS suffix of the images to process
    tiling: str = "auto"  #: way through the volume: "auto", "whole", "tiles" or "paper"
    precision: str = "auto"  #: of the convolutions: "auto", "float32" or "bfloat16"
    keep_white_matter: bool = True  #: scale an estimate whose white matter left the scan's
    mirror: bool = False  #: average with the estimate of the left-right mirrored scan


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Simulation of low-field scans, and training on them (Lin et al. 2019, sections 2.2 to 3.1)."""

    split: Path | None = (
        None  #: JSON file for :func:`iqtflow.training.split.read_split`; None draws one and stores it
    )
    split_ratio: tuple[int, ...] = (12, 3, 15)  #: training to validation to evaluation subjects, where drawn
    upsampling_factor: int = 4  #: k: slice spacing over the high-field voxel edge; one of :data:`FACTORS`
    slice_axes: tuple[str, ...] = ("z",)  #: voxel axes to simulate thick slices along
    thickness_fraction: tuple[float, ...] = (0.75, 0.75)  #: slice thickness over spacing, from and to
    snr_prior: str = "ibadan-0.36T"  #: prior of the tissues' SNR: a published one by name, or a JSON file
    snr_scale: tuple[float, ...] = (1.0, 1.0)  #: factor on the SNR of both tissues, from and to
    bias_amplitude: float = 0.0  #: largest log-amplitude of a smooth shading
    draws: int | Literal["fresh"] = "fresh"  #: simulated scans per subject, or anew for every batch
    patch_library: str = "volumes"  #: one of :data:`PATCH_LIBRARIES`
    patch_size: int | None = None  #: edge of high-field patches in voxels; None: 32, or 48 for k of 3 and 6
    patch_step: tuple[int, ...] = (8, 16, 16)  #: distance of the grid's patches along each axis, in voxels
    background_limit: float = 0.8  #: patches with a larger share of background are dropped
    patch_fraction: float = 0.125  #: share of the grid's pairs that the library of pairs keeps
    mirror: bool = False  #: mirror patches, and swap their in-plane axes
    network: str = "aniso-unet"  #: name in the registry of networks, or ``module:attribute``
    network_options: tuple[str, ...] = ()  #: settings that only this network has, each ``name=value``
    filters: int = 16  #: channels at the first level of the network
    shrink: int = 2  #: b, shrinking layers in each bottleneck block; 2 or 3 in the paper
    residual: bool = True  #: the network learns what to add to the cubic spline; False is the paper's network
    uncertainty: str = "learn"  #: of the estimate: one of :data:`UNCERTAINTIES`; none is the paper's network
    start_from: str | None = None  #: name of a shipped model, or path of one, to begin with its weights
    evaluate_model: str | None = None  #: name or path of a model to judge, instead of training one
    ensemble: int = 1  #: networks trained from different seeds
    batch_size: int = 32  #: patches in an optimisation step
    learning_rate: float = 1e-3  #: of Adam, at the first step
    schedule: str = "decay"  #: one of :data:`SCHEDULES`
    loss: str = "mse"  #: one of :data:`LOSSES`
    steps: int | None = None  #: optimisation steps at most; None lets `max_epochs` decide
    steps_per_epoch: int = 100  #: optimisation steps between two validations
    max_epochs: int = 30  #: validations at most
    patience: int = 5  #: epochs without a better validation loss before training stops; 0 never stops early
    validation_batches: int = 12  #: batches that a validation takes
    devices: int = 1  #: GPUs (on the CPU: processes) of each computer that train one network
    num_nodes: int = 1  #: computers that train one network, in an allocation of SLURM
    tensorboard: bool = False  #: write curves for TensorBoard into the work directory
    model_name: str | None = None  #: of ``models/NAME.safetensors``; None names it after k

    @property
    def stored_draws(self) -> int:
        """Simulated scans that are stored for each high-field scan; at least one, to evaluate on."""
        return 1 if self.draws == "fresh" else self.draws

    @property
    def output_model(self) -> str:
        """Name of the model that is trained."""
        return self.model_name or f"iqt-k{self.upsampling_factor}"

    @property
    def patch_edge(self) -> int:
        """Edge of high-field patches in voxels: the paper's 32, or the next that suits factors of 3."""
        return self.patch_size or (48 if self.upsampling_factor % 3 == 0 else 32)


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """Tissue probability maps of WM, GM and CSF, wherever a mode needs them."""

    engine: str = "auto"  #: one of :data:`ENGINES`; auto: ready-made maps, else SPM if found, else ants
    derivatives: Path | None = None  #: root of fMRIPrep's or sMRIPrep's output with ready-made maps
    spm_dir: Path | None = None  #: SPM compiled for GNU Octave; None looks for one
    tpm: Path | None = None  #: SPM's tissue priors; None takes those of that SPM
    octave: str | None = None  #: Octave program, by name or path; None looks for one
    sampling_mm: float = 3.0  #: distance of the voxels that SPM estimates from; other distances, other maps


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one run."""

    paths: PathSettings
    run: RunSettings = field(default_factory=RunSettings)
    inputs: InputSettings = field(default_factory=InputSettings)
    enhance: EnhanceSettings = field(default_factory=EnhanceSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)


#: The sections of a settings file, by name.
SECTIONS: dict[str, type] = {
    "paths": PathSettings,
    "run": RunSettings,
    "inputs": InputSettings,
    "enhance": EnhanceSettings,
    "train": TrainSettings,
    "segmentation": SegmentationSettings,
}


def read_settings(path: str | os.PathLike) -> Settings:
    """Read complete settings, as :func:`write_settings` wrote them.

    Parameters
    ----------
    path
        A TOML file.

    Returns
    -------
    Settings
        Equal to the settings that were written.

    Raises
    ------
    UsageError
        As for :func:`read_sections`, or a setting without a default is missing.
    """
    values = read_sections(path)
    missing = [key for key in _required(PathSettings) if key not in values.get("paths", {})]
    if missing:
        raise UsageError(
            path,
            found=f"no {', '.join(missing)} in [paths]",
            expected="all of bids_dir, output_dir and work_dir",
            next_step="Add them, or give them on the command line.",
        )
    return Settings(**{name: section(**values.get(name, {})) for name, section in SECTIONS.items()})


def read_sections(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the settings that a TOML file holds, which need not be all.

    Parameters
    ----------
    path
        A TOML file with any of the tables ``[paths] [run] [inputs] [enhance] [train] [segmentation]``.

    Returns
    -------
    dict
        For each table present, the values by name, with the types of the dataclasses' fields.

    Raises
    ------
    UsageError
        The file is missing or not TOML, a table or key is unknown, or a value has the wrong type.
    """
    try:
        tables = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as fault:  # also text that is not in UTF-8
        raise UsageError(
            path,
            found=" ".join(str(fault).split()),
            expected="a settings file in TOML",
            next_step="Start from the settings.toml that every run leaves in its work directory.",
        ) from fault
    return {name: _read_table(path, name, table) for name, table in tables.items()}


def write_settings(settings: Settings, path: str | os.PathLike) -> Path:
    """Write settings as TOML, under their final name only when complete.

    Parameters
    ----------
    settings
        What to write. Settings that are None are left out, TOML having no such value.
    path
        Where to.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    return write_text(path, format_settings(settings))


def format_settings(settings: Settings) -> str:
    """Return the TOML text of settings."""
    return "\n".join(format_section(name, dataclasses.asdict(getattr(settings, name))) for name in SECTIONS)


def format_section(name: str, values: Mapping[str, Any]) -> str:
    """Return the TOML text of one table; values that are None are left out."""
    lines = [f"{key} = {_format_value(value)}" for key, value in values.items() if value is not None]
    return "\n".join([f"[{name}]", *lines, ""])


def default_of(section: type, key: str) -> Any:
    """Return the default of one setting, for the command line to show."""
    return next(item.default for item in dataclasses.fields(section) if item.name == key)


def _format_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    if isinstance(value, (str, os.PathLike)):
        # JSON's escapes are a subset of those of TOML's basic strings, but JSON leaves DEL as it is.
        return json.dumps(os.fspath(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def _read_table(path: str | os.PathLike, name: str, table: Any) -> dict[str, Any]:
    section = SECTIONS.get(name)
    if section is None or not isinstance(table, Mapping):
        raise UsageError(
            path,
            found=f"'{name}' at the top",
            expected=f"only the tables {', '.join(f'[{known}]' for known in SECTIONS)}",
            next_step="Correct the name, or move the setting into its table.",
        )
    hints = get_type_hints(section)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise UsageError(
                path,
                found=f"'{key}' in [{name}]",
                expected=f"one of {', '.join(hints)}",
                next_step="Correct the name, or remove it.",
            )
        values[key] = _convert(value, hints[key], where=f"{os.fspath(path)}, '{key}' in [{name}]")
    return values


def _convert(value: Any, wanted: Any, *, where: str) -> Any:
    """Return the TOML `value` as the type `wanted`; refuse what is of another type."""
    if get_origin(wanted) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(wanted) if kind is not type(None)]
        for kind in kinds:
            if _fits(value, kind):
                return _convert(value, kind, where=where)
    elif get_origin(wanted) is tuple:
        if isinstance(value, list):
            return tuple(_convert(item, get_args(wanted)[0], where=where) for item in value)
    elif _fits(value, wanted):
        return value if get_origin(wanted) is Literal else wanted(value)
    raise UsageError(
        where,
        found=f"{value!r}",
        expected=_describe(wanted),
        next_step="Correct the value.",
    )


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if isinstance(value, bool) or kind is bool:  # bool is an int to Python, but not to a reader of settings
        return isinstance(value, bool) and kind is bool
    as_written: dict[Any, Any] = {Path: str, float: (int, float)}
    return isinstance(value, as_written.get(kind, kind))


def _describe(wanted: Any) -> str:
    if get_origin(wanted) in (Union, types.UnionType):
        return " or ".join(_describe(kind) for kind in get_args(wanted) if kind is not type(None))
    if get_origin(wanted) is tuple:
        return f"a list, each {_describe(get_args(wanted)[0])}"
    if get_origin(wanted) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(wanted))
    return {
        str: "a text",
        Path: "a path as text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }[wanted]


def _required(section: type) -> list[str]:
    return [item.name for item in dataclasses.fields(section) if item.default is dataclasses.MISSING]
