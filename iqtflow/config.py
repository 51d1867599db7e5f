"""Settings of a run: one frozen dataclass for each section of ``settings.toml``.

Each setting is stated once, here: its default, help text, options and limits. `SETTINGS` lists them. The
parsers of the commands, the inputs of the nipype interfaces and the checks are made from this table. No
workflow reads settings from a global variable; they are passed along.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import read_text, require_name, write_text
from iqtflow.utils.gpus import DEVICES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

AXES = ("x", "y", "z")  #: voxel axes of an image, first to third
LABEL = r"[A-Za-z0-9+]+"  #: pattern of a BIDS label
#: BIDS suffixes that name a contrast.
CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "T1rho", "inplaneT1", "inplaneT2", "angio")
#: Largest imperfections of a simulated scan. With larger values no head is visible in the scan: slices three
#: times as wide as stated, a blur or a shift of half a head, a bias field that varies by a factor of 20.
IMPERFECTIONS = {
    "fwhm_jitter": 3.0,
    "slice_offset_mm": 100.0,
    "inplane_fwhm_mm": 100.0,
    "inplane_fwhm_least_mm": 100.0,
    "bias_amplitude": 3.0,
}
#: How to get public high-field scans.
FETCH = (
    "Your own, or public ones (OpenNeuro ds002748, CC0, 3 MB each; docs/tasks/scanner.md):\n"
    "  for s in 01 03 04 05 06 07 08 22 58 59 60 61 62 63; do curl -f --create-dirs -o "
    "highfield/sub-A$s/anat/sub-A${s}_T1w.nii.gz "
    "https://s3.amazonaws.com/openneuro.org/ds002748/sub-$s/anat/sub-${s}_T1w.nii.gz; done\n"
    "  curl -f -o highfield/dataset_description.json "
    "https://s3.amazonaws.com/openneuro.org/ds002748/dataset_description.json"
)
SNR_LIMITS = (0.1, 1e6)  #: of a tissue: below, only noise is visible; above, there is no noise


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that parsers, interfaces and checks need to know of one setting."""

    section: str  #: table of ``settings.toml``
    name: str  #: key in this table
    kind: type  #: type of one value
    words: tuple[str, ...] = ()  #: words that may stand in place of a value
    many: bool = False  #: it is a tuple of values
    default: Any = None  #: None: no value
    help: str = ""  #: what it means
    shown: str = "none"  #: what help shows when the default is None, or ()
    flags: tuple[str, ...] = ()  #: options of ``iqtflow``
    command: str = ""  #: option of the small commands, such as ``iqtflow-train``, if it is another one
    group: str = ""  #: heading in the help of ``iqtflow``
    metavar: str | tuple[str, ...] | None = None  #: what stands for the value in help
    choices: tuple[Any, ...] = ()  #: all allowed values
    low: float | None = None  #: least number
    high: float | None = None  #: largest number
    above: float | None = None  #: number that the value must exceed
    count: int | None = None  #: how many values there are; two are a range
    separator: str = ""  #: what separates the values in a single argument
    pattern: str = ".+"  #: regular expression of a text
    form: str = ""  #: what a value is, in words
    prefix: str = ""  #: beginning of a text that is left out
    parse: Callable[[str], Any] | None = None  #: makes a value of a text, if `kind` does not
    level: str = ""  #: the only analysis level that reads it; empty: both
    fresh: bool = False  #: for fresh draws only; stored scans are simulated as in the paper
    #: Runs that differ in it may share a folder: scans to take, processors, folders, words.
    neutral: bool = False
    action: str = ""  #: argparse's action, if its option takes no value and has no ``--no-...``

    @property
    def option(self) -> str:
        """Long option of ``iqtflow``, for messages."""
        return next((flag for flag in self.flags if flag.startswith("--")), self.name)

    @property
    def command_option(self) -> str:
        """Option of the small commands."""
        return self.command or self.option

    @property
    def expected_one(self) -> str:
        """What one value may be, in words."""
        names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
        one = self.form or names.get(self.kind, "a text that is not empty")
        if self.choices and not self.form:
            one = f"one of {', '.join(map(str, self.choices))}"
        limits = (("above", self.above), ("from", self.low), ("up to", self.high))
        one += "".join(f" {word} {limit}" for word, limit in limits if limit is not None)
        return one + "".join(f' or "{word}"' for word in self.words)

    @property
    def expected(self) -> str:
        """What the setting may be, in words."""
        if self.count == 2:
            return f"two values, the lower one first, each {self.expected_one}"
        many = f"{self.count or 'a list of'} values, each " if self.many and not self.separator else ""
        return f"{many}{self.expected_one}"

    def read(self, text: str) -> Any:
        """Return the value of an argument; of a setting with many values, of one argument of several.

        Raises
        ------
        ValueError
            The value is not allowed.
        """
        if self.separator:
            return self._require(tuple(map(self._read_one, text.split(self.separator))))
        return self._read_one(text)

    def convert(self, value: Any) -> Any:
        """Return a value of a TOML file with the setting's type.

        Raises
        ------
        ValueError
            The value is not allowed.
        """
        if not self.many:
            return self._convert_one(value)
        if not isinstance(value, list):
            raise ValueError
        return self._require(tuple(map(self._convert_one, value)))

    def accepts(self, value: Any) -> bool:
        """Return whether a value, with the setting's type, is allowed."""
        if not self.many:
            return value == self.default or self._fits(value)
        return (
            all(map(self._fits, value))
            and (self.count is None or len(value) == self.count)
            and (self.count != 2 or value[0] <= value[1])
            and (not self.separator or len(set(value)) == len(value))
            and bool(value or not self.default)
        )

    def _read_one(self, text: str) -> Any:
        text = text.removeprefix(self.prefix)
        if not text or "\0" in text:
            raise ValueError
        value = text if text in self.words else (self.parse or self.kind)(text)
        if not self._fits(value):
            raise ValueError
        return value

    def _convert_one(self, value: Any) -> Any:
        wanted: dict[type, Any] = {Path: str, float: (int, float)}
        if value not in self.words and not isinstance(value, wanted.get(self.kind, self.kind)):
            raise ValueError
        if isinstance(value, bool) != (self.kind is bool):  # bool is an int to Python, but not to a reader
            raise ValueError
        return value if self.kind is bool else self._read_one(str(value))

    def _fits(self, value: Any) -> bool:
        if isinstance(value, str):
            return value in (*self.choices, *self.words) or (
                not self.choices and re.fullmatch(self.pattern, value, re.DOTALL) is not None
            )
        if isinstance(value, Path) or self.kind is bool:
            return True
        return (
            value in (self.choices or (value,))
            and math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and value <= (2**63 - 1 if self.high is None else self.high)  # as libraries in C can hold
        )

    def _require(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.accepts(values):
            raise ValueError
        return values


def named_folder(text: str) -> Path:
    """Return a folder that may have a name before it, as fMRIPrep has it: ``smriprep=/data/smriprep``."""
    name, _, folder = text.partition("=")
    return Path(folder if folder and name.isidentifier() and not os.path.exists(text) else text)


def setting(default: Any, help: str, flags: str = "", **more: Any) -> Any:
    """Return a dataclass field with the attributes of a `Setting`.

    Without `flags` the option has the name of the field. `group` holds until another field states one.
    """
    return field(default=default, metadata={"help": help, "flags": tuple(flags.split()), **more})


_WORKERS: dict[str, Any] = {"low": 1, "high": 1024}  # no machine and no job has more
_RANGE: dict[str, Any] = {"count": 2, "metavar": ("LOW", "HIGH"), "fresh": True}
_SHARE: dict[str, Any] = {"low": 0, "high": 1, "metavar": "SHARE"}
_LABELS: dict[str, Any] = {
    "metavar": "LABEL",
    "pattern": LABEL,
    "form": "a BIDS label: letters, digits and +",
    "shown": "all",
}


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """The three folders of a run, as absolute paths."""

    bids_dir: Path  #: root of the input data set; never written to
    output_dir: Path  #: root of the derivatives
    work_dir: Path  #: intermediate results; if it is deleted, they are computed again


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is run, on which subjects, and with which resources."""

    levels: tuple[str, ...] = setting(
        ("participant",), "analysis levels, in this order", choices=("participant", "group")
    )
    mode: str = setting(
        "enhance",
        "enhance scans, train a network, measure your own scanner, or adapt a model to it",
        group="what to do",
        choices=("enhance", "train", "calibrate", "adapt"),
    )
    force: bool = setting(False, "enhance near-isotropic scans, too")
    stop_on_first_crash: bool = setting(False, "stop everything when one subject fails")
    seed: int = setting(
        0,
        "seed of all random numbers",
        "--random-seed",
        command="--seed",
        low=0,
        high=2**31 - 1,
        neutral=False,
    )
    verbose: int = setting(0, "print more; -vv prints everything", "-v --verbose", low=0, action="count")
    viewer: bool = setting(True, "put a viewer of all slices into the pages of enhanced scans")
    viewer_mb: float = setting(
        40.0,
        "most megabytes of the viewer's volumes, for each scan; only every second or third voxel is kept if "
        "they are larger",
        above=0,
        metavar="MB",
    )
    participant_labels: tuple[str, ...] = setting(
        (),
        "labels of subjects, with or without sub-",
        "--participant-label --participant_label",
        group="which scans",
        prefix="sub-",
        **_LABELS,
    )
    session_labels: tuple[str, ...] = setting(
        (),
        "labels of sessions, with or without ses-",
        "--session-label --session_label",
        prefix="ses-",
        **_LABELS,
    )
    nprocs: int = setting(
        1, "processors to use", "--nprocs --nthreads --n-cpus --n_cpus", group="resources", **_WORKERS
    )
    omp_nthreads: int = setting(1, "processors that one task may use", command="--num-threads", **_WORKERS)
    mem_gb: float = setting(4.0, "memory to use, in GB", above=0, metavar="GB")
    low_mem: bool = setting(False, "use less memory and more time")
    device: str = setting(
        "cpu", "where networks run: auto takes a GPU that works; cuda fails without a GPU", choices=DEVICES
    )
    n_gpu_procs: int | None = setting(
        None, "GPU jobs at the same time, never two on one card", shown="one for each GPU", **_WORKERS
    )
    resource_monitor: bool = setting(
        False, "record memory and processor use of every step in resource_monitor.json in the work directory"
    )
    write_graph: bool = setting(
        False, "draw the steps in graph.dot in the work directory, and in graph.svg if graphviz is installed"
    )
    use_plugin: Path | None = setting(
        None,
        "run as jobs of a cluster: YAML file with nipype's plugin and its arguments (docs/tasks/cluster.md)",
        "--use-plugin --nipype-plugin-file",
    )

    @property
    def page_viewer_mb(self) -> float:
        """Most megabytes of a page's viewer; 0 without a viewer."""
        return self.viewer_mb if self.viewer else 0.0


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """How the scans are found."""

    filter_file: Path | None = setting(
        None,
        'JSON such as {"t1w": {"acquisition": "3D", "run": null}}, as for fMRIPrep: long names of entities, '
        'or fields of the sidecars; null: scans without it, "*": with any value',
        "--bids-filter-file",
        group="which scans",
    )
    database_dir: Path | None = setting(
        None,
        "folder of pybids' index of the data set, for large data sets; made if there is none",
        "--bids-database-dir",
        metavar="DIR",
    )
    skip_validation: bool = setting(
        False,
        "do not check the data set before the run",
        "--skip-bids-validation --skip_bids_validation",
        action="store_true",
    )


@dataclass(frozen=True, kw_only=True)
class EnhanceSettings:
    """Image quality transfer of low-field scans."""

    model: str | None = setting(
        None,
        "name of a shipped model, or a model file of your own (.safetensors)",
        group="enhance",
        metavar="NAME|PATH",
        shown="by the scan's slice spacing",
    )
    contrast: str = setting(
        "T1w", "BIDS suffix of the scans to enhance; needs a model that was trained for it", choices=CONTRASTS
    )
    tiling: str = setting(
        "auto",
        "sliding window; auto: the whole volume at once if the model's training and the memory allow it, "
        "else tiles; paper: as Lin et al. 2019, slow",
        choices=("auto", "whole", "tiles", "paper"),
    )
    precision: str = setting(
        "auto",
        "precision of convolutions; auto: bfloat16 if the hardware supports it, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    keep_white_matter: bool = setting(
        True,
        "scale the enhanced volume if its white matter differs from the scan's more than on evaluation scans",
    )
    slice_intensity: str = setting(
        "auto",
        "odd and even slices of different intensity, as in some interleaved scans; auto: correct a "
        "significant difference by one gain for odd and one for even slices; keep: change nothing",
        choices=("auto", "keep"),
    )
    data_consistency: bool = setting(
        False, "correct the enhanced volume so that it reproduces the slices of the scan within their noise"
    )
    voxel_size: float | Literal["native"] = setting(
        "native",
        "voxel size of the enhanced volume; native: the plane of the scan, and k thin slices of each slice; "
        "MM: cubic voxels of 0.7 to 1.5 mm",
        low=0.7,
        high=1.5,
        metavar="native|MM",
    )
    acquired_spacing: float | None = setting(
        None,
        "for volumes that were interpolated before: distance in mm of the slices as they were acquired; the "
        "volume is brought back to them",
        above=0,
        high=30,
        metavar="MM",
        shown="the volume is used as it is",
    )
    acquired_axis: str | None = setting(
        None,
        "axis of the slices that --acquired-spacing is for",
        choices=AXES,
        shown="the one with the coarsest measured resolution",
    )
    combine_stacks: bool = setting(
        False,
        "also make one volume of the scans of a session that differ only in acq- or run-: slices along "
        "different axes, or repeated; motion between them is corrected",
    )
    mirror: bool = setting(
        False,
        "average with the enhanced volume of the left-right mirrored scan; takes twice as long",
        "--average-mirrored",
    )
    output_layout: str = setting(
        "bids",
        "bids: results lie in the output folder; multiverse: in a folder iqtflow-HASH inside, one for each "
        "model and choice of settings",
        choices=("bids", "multiverse"),
        neutral=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Simulation of low-field scans, and training on them (Lin et al. 2019, sections 2.2 to 3.1)."""

    upsampling_factor: int = setting(
        4,
        "upsampling factor k: slice spacing divided by the voxel size of the high-field image",
        "-k --upsampling-factor",
        command="--k",
        group="train: simulated low field",
        choices=(2, 3, 4, 6, 8),
        level="",
    )
    slice_axes: tuple[str, ...] = setting(
        ("z",),
        "voxel axes along which thick slices are simulated, such as x,y",
        metavar="AXES",
        choices=AXES,
        separator=",",
        form="a list of x, y, z, each once, with commas",
        level="participant",
        neutral=True,  # scans of one data set may be blurred along different axes; libraries state theirs
    )
    thickness_fraction: tuple[float, float] = setting(
        (0.75, 0.75),
        "range of slice thickness divided by slice spacing; the rest is gap",
        low=0.01,
        high=1,
        **_RANGE,
    )
    snr_prior: str = setting(
        "ibadan-0.36T",
        "prior of the tissue SNR: the name of a published one, or a JSON file",
        command="--prior",
        metavar="NAME|FILE",
        level="",
    )
    snr_scale: tuple[float, float] = setting(
        (1.0, 1.0), "range of a factor on the SNR of both tissues", low=0.01, high=100, **_RANGE
    )
    bias_amplitude: float = setting(
        0.0,
        "largest log-amplitude of a bias field in input and target",
        low=0,
        high=IMPERFECTIONS["bias_amplitude"],
        metavar="A",
        fresh=True,
    )
    zoom: tuple[float, float] = setting(
        (1.0, 1.0),
        "range of a factor on the voxel size of the high-field images, for half of the patches",
        low=0.25,
        high=4,
        **_RANGE,
    )
    spacing_jitter: float = setting(
        0.0,
        "largest relative change of slice spacing over in-plane voxel size, for half of the patches",
        fresh=True,
        **_SHARE,
    )
    contrast_jitter: float = setting(
        0.0,
        "largest relative change of grey over white matter intensity, in addition to the prior",
        fresh=True,
        **_SHARE,
    )
    coarse_plane: tuple[float, float] = setting(
        (1.0, 1.0),
        "range of the in-plane voxel size of simulated scans, in high-field voxels, for a third of the "
        "patches; such scans are brought to the high-field plane by splines",
        low=1,
        high=3,
        **_RANGE,
    )
    stripes: float = setting(
        0.0,
        "largest relative change of the intensity of every other slice, for a quarter of the patches",
        fresh=True,
        **_SHARE,
    )
    plane_blur: tuple[float, float] = setting(
        (0.0, 0.0),
        "range of the blur of simulated scans in the plane (FWHM), in high-field voxels",
        low=0,
        high=5,
        **_RANGE,
    )
    noise: str = setting(
        "gaussian", "distribution of the noise of simulated scans", choices=("gaussian", "rician"), fresh=True
    )
    evaluate_as: str = setting(
        "paper",
        "stored scans, which models are evaluated on, are simulated as in the paper, or with "
        "--thickness-fraction, --plane-blur and --noise as in the training",
        choices=("paper", "training"),
        level="participant",
    )
    draws: int | Literal["fresh"] = setting(
        "fresh",
        "train on N stored simulated scans per subject; fresh: simulate anew for every batch",
        low=1,
        metavar="fresh|N",
        level="",
    )
    mirror: bool = setting(False, "mirror patches at random and swap their in-plane axes")
    patch_library: str = setting(
        "volumes",
        "volumes with an index of patches, or all pairs of patches, as in the paper (needs --draws N)",
        group="train: patches",
        choices=("volumes", "pairs"),
        level="",
    )
    patch_size: int | None = setting(
        None,
        "edge of the high-field patches in voxels, a multiple of k",
        low=1,
        shown="32; 48 if k is 3 or 6",
        level="",
    )
    patch_step: tuple[int, int, int] = setting(
        (8, 16, 16),
        "distance between patches along each axis, in high-field voxels",
        count=3,
        low=1,
        metavar=("X", "Y", "Z"),
        level="participant",
    )
    background_limit: float = setting(
        0.8, "leave out patches with a larger share of background", level="participant", **_SHARE
    )
    patch_fraction: float = setting(
        0.125,
        "share of the pairs that are kept, chosen at random, with --patch-library pairs",
        command="--fraction",
        above=0,
        high=1,
        metavar="SHARE",
        level="participant",
    )
    network: str = setting(
        "aniso-unet",
        "aniso-unet, iso-unet, sru-net, subpixel-unet, or your own: the name of an entry point "
        "iqtflow.networks, or module:attribute",
        group="train: network",
        metavar="NAME",
    )
    network_options: tuple[str, ...] = setting(
        (),
        "settings that only this network has",
        "--network-option",
        pattern=r"[^\W\d]\w*=.*",
        form="of the form NAME=VALUE",
        metavar="NAME=VALUE",
    )
    filters: int = setting(16, "channels at the first level of the network", low=2)
    shrink: int = setting(2, "shrinking layers in each bottleneck block (b in the paper: 2 or 3)", low=1)
    residual: bool = setting(
        True, "the network learns what to add to the cubic spline; no: the paper's network"
    )
    uncertainty: str = setting(
        "learn",
        "learn: train the predicted error (standard deviation) together with the enhanced volume; only: keep "
        "the enhanced volume of --start-from and train its predicted error alone; none: the paper's network",
        choices=("learn", "only", "none"),
    )
    start_from: str | None = setting(
        None,
        "fine-tuning: begin with the weights of this model, a shipped model's name or a file",
        metavar="MODEL",
        shown="none, random weights",
    )
    evaluate_model: str | None = setting(
        None,
        "train nothing: evaluate this model, a shipped model's name or a file, on the evaluation subjects",
        metavar="MODEL",
    )
    ensemble: int = setting(1, "networks to train, each from its own seed", low=1)
    model_name: str | None = setting(
        None, "name of the model that is written", metavar="NAME", shown="trained-kN, N the upsampling factor"
    )
    split: Path | None = setting(
        None,
        'JSON with the lists "train", "validation" and "evaluation" of subject labels',
        group="train: optimisation",
        shown="drawn once and stored in models/split.json",
    )
    split_ratio: tuple[int, int, int] = setting(
        (12, 3, 15),
        "ratio of training, validation and evaluation subjects, if the split is drawn",
        count=3,
        low=0,
        metavar=("TRAIN", "VALIDATION", "EVALUATION"),
    )
    cross_validation: int | None = setting(
        None,
        "deal the subjects into N folds; for each fold train a model on the others and evaluate it on this "
        "one; then train the model to use on all subjects",
        low=2,
        shown="none, one split",
    )
    batch_size: int = setting(32, "patches in an optimisation step", low=1)
    learning_rate: float = setting(1e-3, "learning rate at the first step", above=0, metavar="LR")
    schedule: str = setting(
        "decay",
        "learning rate: the paper's slow decay, or a cosine to zero at the last step",
        choices=("decay", "cosine"),
    )
    loss: str = setting("mse", "mean squared or mean absolute error", choices=("mse", "l1"))
    optimiser: str = setting(
        "adam",
        "the paper's Adam; AdamW (betas 0.9 and 0.99, weight decay 1e-4); or Muon for convolutions, with "
        "AdamW for all else",
        choices=("adam", "adamw", "muon"),
    )
    warmup: int = setting(0, "steps in which the learning rate rises from zero", low=0)
    clip: float = setting(0.0, "largest norm of the gradient; 0: no limit", low=0, metavar="NORM")
    averaging: float = setting(
        0.0,
        "decay of a moving average of the weights, which is validated and kept; 0: no average",
        low=0,
        high=1,
        metavar="DECAY",
    )
    average_with_start: bool = setting(
        False,
        "at the end average the weights with those of --start-from, with the share that has the lowest "
        "validation loss",
    )
    background_weight: float = setting(
        1.0, "weight of voxels outside the brain in the loss", low=0, metavar="W"
    )
    precision: str = setting(
        "float32",
        "precision of convolutions in training on a CPU; a GPU uses bfloat16",
        "--training-precision",
        command="--precision",
        choices=("float32", "bfloat16"),
    )
    # Neutral, since a finished training goes on if more of them are asked for later.
    steps: int | None = setting(
        None, "optimisation steps at most", low=1, shown="what --max-epochs allows", neutral=True
    )
    steps_per_epoch: int = setting(100, "optimisation steps between validations and checkpoints", low=1)
    max_epochs: int = setting(30, "validations at most", low=1, neutral=True)
    patience: int = setting(
        5, "validations without a lower loss before training stops; 0: never stop early", low=0, neutral=True
    )
    validation_batches: int = setting(12, "batches in a validation", low=1)
    devices: int = setting(
        1,
        "GPUs (on a CPU: processes) of each computer that train one network",
        neutral=True,
        **_WORKERS,
    )
    num_nodes: int = setting(
        1,
        "computers that train one network together, in an allocation of SLURM",
        neutral=True,
        **_WORKERS,
    )
    tensorboard: bool = setting(False, "write curves for TensorBoard into the work directory", neutral=True)

    @property
    def stored_draws(self) -> int:
        """Simulated scans that are stored for each high-field scan; at least one, to evaluate on."""
        return 1 if self.draws == "fresh" else self.draws

    @property
    def output_model(self) -> str:
        """Name of the model that is trained; by default no shipped model has it."""
        return self.model_name or f"trained-k{self.upsampling_factor}"

    @property
    def patch_edge(self) -> int:
        """Edge of high-field patches in voxels: the paper's 32, or 48 for factors of 3."""
        return self.patch_size or (48 if self.upsampling_factor % 3 == 0 else 32)


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """Fine-tuning of a shipped model for the scanner of the low-field scans."""

    highfield: Path | None = setting(
        None,
        "BIDS data set with high-field T1w scans of four people or more, your own or public ones",
        group="adapt",
        metavar="DIR",
    )
    budget: str = setting(
        "100m",
        "time for the group level, such as 90s, 20m or 2h; the training is as long as fits into it",
        pattern=r"\d+(\.\d+)?[smh]",
        form="a number and s, m or h",
        metavar="TIME",
        neutral=True,
    )

    @property
    def budget_s(self) -> float:
        """The budget in seconds."""
        return float(self.budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.budget[-1]]


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """Tissue probability maps of WM, GM and CSF, for the modes that need them."""

    engine: str = setting(
        "auto",
        "auto: ready-made maps if there are any, else SPM if it is found, else ants, a part of iqtflow",
        "--segmentation",
        command="--engine",
        group="tissue maps",
        choices=("auto", "spm", "ants", "derivatives"),
    )
    derivatives: tuple[Path, ...] = setting(
        (),
        "ready-made maps: output folders of fMRIPrep or sMRIPrep, with or without a name, as in "
        "smriprep=/data/smriprep; the first one with maps of a scan is taken",
        "-d --derivatives",
        metavar="DIR",
        parse=named_folder,
    )
    spm_dir: Path | None = setting(
        None,
        "folder of SPM compiled for GNU Octave",
        metavar="DIR",
        shown="$SPM_HOME ... /opt/spm12, /opt/spm",
    )
    tpm: Path | None = setting(None, "tissue priors for SPM", shown="tpm/TPM.nii of that SPM")
    octave: str | None = setting(
        None,
        "GNU Octave, by name or path",
        metavar="PROGRAM",
        shown="$OCTAVE_EXEC, octave-cli, octave",
        neutral=True,
    )
    sampling_mm: float = setting(
        3.0,
        "distance of the voxels that SPM estimates from, in mm",
        "--sampling-distance",
        above=0,
        metavar="MM",
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one run."""

    paths: PathSettings
    run: RunSettings = field(default_factory=RunSettings)
    inputs: InputSettings = field(default_factory=InputSettings)
    enhance: EnhanceSettings = field(default_factory=EnhanceSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)


#: The sections of a settings file, by name.
SECTIONS: dict[str, type] = {
    "paths": PathSettings,
    "run": RunSettings,
    "inputs": InputSettings,
    "enhance": EnhanceSettings,
    "train": TrainSettings,
    "adapt": AdaptSettings,
    "segmentation": SegmentationSettings,
}
#: Modes that read the settings of a section; the others are for all modes.
SECTION_MODES = {
    "enhance": ("enhance",),
    "train": ("train",),
    "adapt": ("adapt",),
    "segmentation": ("train", "calibrate", "adapt"),
}
#: Modes that read a setting, where they are others than those of its section.
SETTING_MODES = {
    "force": ("enhance", "calibrate", "adapt"),
    **dict.fromkeys(("split", "start_from", "model_name"), ("train", "adapt")),
}


def _list_settings(section: str) -> Iterator[Setting]:
    """Yield the settings of a section; types come from the annotations of the dataclass."""
    hints = get_type_hints(SECTIONS[section])
    stated: dict[str, Any] = {"section": section, "group": ""}
    stated["level"] = {"train": "group", "adapt": "group", "segmentation": "participant"}.get(section, "")
    stated["neutral"] = section not in SECTION_MODES
    for item in dataclasses.fields(SECTIONS[section]):
        hint = hints[item.name]
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        many = get_origin(hint) is tuple
        kind = get_args(hint)[0] if many else parts[0]
        stated["group"] = item.metadata.get("group", stated["group"])
        yield Setting(
            name=item.name,
            kind=kind,
            many=many,
            words=tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part)),
            default=None if item.default is dataclasses.MISSING else item.default,
            **{
                "metavar": None if "choices" in item.metadata else {int: "N", Path: "FILE"}.get(kind),
                **stated,
                **item.metadata,
                "flags": item.metadata.get("flags") or (f"--{item.name.replace('_', '-')}",),
            },
        )


#: Every setting, by section and name.
SETTINGS: dict[str, dict[str, Setting]] = {
    section: {item.name: item for item in _list_settings(section)} for section in SECTIONS
}
#: Settings of training that only the participant level reads.
PARTICIPANT = tuple(name for name, item in SETTINGS["train"].items() if item.level == "participant")
#: Settings of scans that are simulated anew for every batch.
FRESH_ONLY = tuple(name for name, item in SETTINGS["train"].items() if item.fresh)
#: Settings of the training of one network. The others prepare libraries, split subjects, or join and evaluate
#: networks; `tensorboard` and `network_options` have another form in ``iqtflow-train``.
OF_ONE_NETWORK = [name for name in SETTINGS["train"] if name not in {
    "slice_axes", "patch_library", "patch_step", "background_limit", "patch_fraction", "split", "split_ratio",
    "cross_validation", "ensemble", "model_name", "evaluate_model", "evaluate_as", "tensorboard",
    "network_options",
}]  # fmt: skip


def check_fresh(values: Any) -> None:
    """Make sure that the settings of fresh draws are within their limits, and ranges the lower value first.

    Parameters
    ----------
    values
        Object with the settings in `FRESH_ONLY` as attributes.

    Raises
    ------
    UsageError
        A value is outside its limits, or a range has its higher value first.
    """
    for name in FRESH_ONLY:
        item, value = SETTINGS["train"][name], getattr(values, name)
        if not item.accepts(value):
            raise UsageError(
                item.option,
                found=" to ".join(f"{number:g}" for number in value) if item.many else str(value),
                expected=item.expected,
                next_step="Swap the two."
                if item.many and item.accepts(value[::-1])
                else "Correct the value.",
            )


def check_training(train: TrainSettings) -> None:
    """Make sure that settings of a training go together, before time is spent on it.

    Raises
    ------
    UsageError
        Two settings contradict each other, or the model's name cannot be the name of a file.
    """
    check_fresh(train)
    changed = [name for name in FRESH_ONLY if getattr(train, name) != getattr(TrainSettings, name)]
    if train.model_name is not None:
        # A fold's model has a longer name.
        end = f"_fold-{train.cross_validation}" if train.cross_validation else ""
        require_name(f"{train.model_name}{end}", "--model-name")
    devices = train.devices * train.num_nodes
    for option, wrong, found, expected, next_step in (
        (
            "--patch-library pairs",
            train.patch_library == "pairs" and train.draws == "fresh",
            "--draws fresh, which stores no simulated scans",
            "a number of stored simulated scans",
            "Add --draws N; the paper has 1, 2, 4 and 8.",
        ),
        (
            " ".join(SETTINGS["train"][name].option for name in changed),
            changed and train.draws != "fresh",
            f"--draws {train.draws}: stored scans are simulated as in the paper",
            "--draws fresh, which simulates anew for every batch",
            "Leave one of the two out.",
        ),
        (
            "--patch-size",
            train.patch_edge % train.upsampling_factor != 0,
            f"{train.patch_edge} voxels",
            f"a multiple of k = {train.upsampling_factor}",
            "Choose another size; 48 suits all factors.",
        ),
        (
            "--uncertainty only",
            train.uncertainty == "only" and train.start_from is None,
            "no model whose enhanced volume is kept",
            "a model",
            "Add --start-from MODEL.",
        ),
        (
            "--average-with-start",
            train.average_with_start and train.start_from is None,
            "no model to average with",
            "a model",
            "Add --start-from MODEL.",
        ),
        (
            "--cross-validation",
            train.cross_validation is not None and train.split is not None,
            "a split file, --split",
            "subjects that are dealt into folds at random",
            "Leave one of the two out.",
        ),
        (
            "--cross-validation",
            train.cross_validation is not None and train.evaluate_model is not None,
            "--evaluate-model, which trains nothing",
            "networks to train, one or more for each fold",
            "Leave one of the two out.",
        ),
        (
            "--batch-size",
            train.batch_size % devices != 0,
            f"{train.batch_size} patches for {devices} devices",
            "the same number for each device",
            "Choose a multiple of the number of devices.",
        ),
    ):
        if wrong:
            raise UsageError(option, found=found, expected=expected, next_step=next_step)


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
    missing = [key for key in SETTINGS["paths"] if key not in values.get("paths", {})]
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
        A TOML file with any of the tables ``[paths] [run] [inputs] [enhance] [train] [adapt]
        [segmentation]``.

    Returns
    -------
    dict
        For each table present, the values by name, with the types of the dataclasses' fields.

    Raises
    ------
    UsageError
        The file is missing or not TOML, a table or key is unknown, or a value is not allowed.
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
    if name not in SECTIONS or not isinstance(table, Mapping):
        raise UsageError(
            path,
            found=f"'{name}' at the top",
            expected=f"only the tables {', '.join(f'[{known}]' for known in SECTIONS)}",
            next_step="Correct the name, or move the setting into its table.",
        )
    values = {}
    for key, value in table.items():
        item = SETTINGS[name].get(key)
        if item is None:
            raise UsageError(
                path,
                found=f"'{key}' in [{name}]",
                expected=f"one of {', '.join(SETTINGS[name])}",
                next_step="Correct the name, or remove it.",
            )
        try:
            values[key] = item.convert(value)
        except ValueError as fault:
            raise UsageError(
                path,
                found=f"{key} = {value!r} in [{name}]",
                expected=item.expected,
                next_step="Correct the value; iqtflow --help describes it.",
            ) from fault
    return values
