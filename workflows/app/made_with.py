"""What the results in an output folder were made with: no run with another model or other settings replaces
them, or adds to them, unnoticed.

``dataset_description.json`` states it: the settings that change results, their hash, and the SHA-256 of the
models. As in XCP-D and NiBabies, a hash can also name a folder of its own for each choice of settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iqtflow.bids.names import SCAN_OUTPUTS, output_name
from iqtflow.bids.sidecars import product_of, read_made_with
from iqtflow.config import SECTION_MODES, SETTINGS, Setting, Settings
from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import sha256_of

HASH_DIGITS = 8  #: of the hash in the name of a folder


def describe(settings: Settings, level: str) -> dict[str, Any]:
    """Return what a level of a run makes its results with, as an entry of ``GeneratedBy``.

    Parameters
    ----------
    settings
        All settings.
    level
        ``participant`` or ``group``.

    Returns
    -------
    dict
        ``Mode``, ``Level`` and ``Product`` say which results. ``Settings`` holds the settings that change
        them, by their options; a file is stated by its SHA-256. ``Models`` holds the SHA-256 of the models
        that may be used, and ``SettingsSHA256`` the hash of both.

    Raises
    ------
    InputError
        There is no such model.
    """
    from iqtflow.models.zoo import candidates  # with numpy, for which the parser need not wait

    mode, enhance = settings.run.mode, settings.enhance
    stated = {
        item.option: _value(item, getattr(getattr(settings, item.section), item.name))
        for item in _that_matter(mode, level)
    }
    models = {}
    if mode == "enhance":
        files = sorted(candidates(enhance.model, enhance.contrast).values())
        models = {path.stem: sha256_of(path) for path in files}
        stated["--model"] = None  # its file may move
    products = {("enhance", "participant"): enhance.contrast, ("train", "group"): _model_name(settings)}
    return sign(
        {
            "Description": f"--mode {mode}, {level} level",
            "Mode": mode,
            "Level": level,
            "Product": products.get((mode, level), ""),
            "Models": models,
            "Settings": stated,
        }
    )


def sign(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry with the hash of its ``Settings`` and the SHA-256 of its ``Models``."""
    content = json.dumps([entry["Settings"], sorted(entry["Models"].values())], sort_keys=True)
    return {**entry, "SettingsSHA256": hashlib.sha256(content.encode()).hexdigest()}


def in_own_folder(settings: Settings) -> Settings:
    """Return settings whose results lie in a folder of their own inside the output folder, named by the hash
    of what they are made with; intermediate results likewise.
    """
    name = f"iqtflow-{describe(settings, 'participant')['SettingsSHA256'][:HASH_DIGITS]}"
    paths = settings.paths
    own = dataclasses.replace(paths, output_dir=paths.output_dir / name, work_dir=paths.work_dir / name)
    return dataclasses.replace(settings, paths=own)


def check_made_with(settings: Settings, *, overwrite: bool = False) -> None:
    """Make sure that a run continues earlier results only with the same model and settings.

    Parameters
    ----------
    settings
        All settings.
    overwrite
        Other settings may replace the results.

    Raises
    ------
    UsageError
        The output folder has results that were made with another model or other settings.
    """
    output, earlier = settings.paths.output_dir, read_made_with(settings.paths.output_dir)
    for level in settings.run.levels:
        now = describe(settings, level)
        before = earlier.get(product_of(now))
        if overwrite or before is None or not _has_results(output, now):
            continue
        known = _that_matter(now["Mode"], level)
        was, is_ = difference(before, now, {item.option: _value(item, item.default) for item in known})
        if was:
            raise UsageError(
                output,
                found=f"results of --mode {now['Mode']} made with {was}",
                expected=f"results of the settings of this run, {is_}",
                next_step=_advice(now),
            )


def difference(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[str, str]:
    """Return in words what differs between two entries: as it was, and as it is now; empty if nothing does.

    Parameters
    ----------
    before, now
        With ``Models`` and ``Settings``, as from `describe`.
    defaults
        Settings that an entry of an older version does not have. Settings that only it has do not count.
    """
    pairs = []
    models = before.get("Models") if isinstance(before.get("Models"), dict) else {}
    if sorted(map(str, models.values())) != sorted(now["Models"].values()):
        pairs.append((_name(models), _name(now["Models"])))
    for option in sorted(now["Settings"]):
        was, is_ = (one["Settings"].get(option, defaults.get(option)) for one in (before, now))
        if json.dumps(was) != json.dumps(is_):
            pairs.append((f"{option} {_shown(was)}", f"{option} {_shown(is_)}"))
    return ", ".join(was for was, _ in pairs), ", ".join(is_ for _, is_ in pairs)


def _advice(now: dict[str, Any]) -> str:
    own = {
        ("enhance", "participant"): "Add --output-layout multiverse, which gives each choice of settings a "
        "folder of its own",
        ("train", "group"): "Give the new model another name with --model-name",
    }.get((now["Mode"], now["Level"]), "Choose another output folder")
    # Checkpoints of another training are not replaced.
    fresh = " with a new --work-dir" if (now["Mode"], now["Level"]) == ("train", "group") else ""
    return f"{own}, or --overwrite{fresh} to replace the results; or run with the settings of the results."


def _model_name(settings: Settings) -> str:
    """Return the name of the model that the group level writes: its own, or that of the one it evaluates."""
    train = settings.train
    if settings.run.mode != "train" or train.evaluate_model is None:
        return train.output_model
    from iqtflow.models.model_file import read_card

    return train.model_name or read_card(train.evaluate_model).name


def _that_matter(mode: str, level: str) -> list[Setting]:
    """Return the settings that change the results of a level."""
    sections = [section for section, modes in SECTION_MODES.items() if mode in modes]
    found = [item for section in sections for item in SETTINGS[section].values()]
    if mode != "enhance":  # which draws no random numbers
        found.append(SETTINGS["run"]["seed"])
    return [item for item in found if not item.neutral and item.level in ("", level)]


def _value(item: Setting, value: Any) -> Any:
    """Return a value as JSON has it; for a file or a model, what identifies its content."""
    if value is not None and item.metavar in ("NAME|PATH", "MODEL"):
        from iqtflow.models.model_file import find_model

        return sha256_of(find_model(value)[0])
    if isinstance(value, (str, Path)) and os.path.isfile(value):
        return sha256_of(value)
    if isinstance(value, tuple):
        return [_value(item, one) for one in value]
    return os.fspath(value) if isinstance(value, Path) else value


def _has_results(output: Path, now: dict[str, Any]) -> bool:
    """Return whether a folder has a result of this mode, level and product."""
    mode, level, product = product_of(now)
    if level == "group":
        pages = {"calibrate": "prior", "adapt": "adaptation"}
        made = output_name(pages[mode]) if mode in pages else output_name("model", model=product)
        return (output / made).exists()
    measured = "{folder}/*{extension}".format(**SCAN_OUTPUTS["measurement"])
    patterns = {
        "enhance": f"sub-*/**/*_desc-{SCAN_OUTPUTS['enhanced']['desc']}_{product}.nii*",
        "train": "{folder}/*_{suffix}{extension}".format(**SCAN_OUTPUTS["library"]),
        **dict.fromkeys(("calibrate", "adapt"), measured),
    }
    return next(output.glob(patterns[mode]), None) is not None


def _name(models: dict[str, str]) -> str:
    listed = " or ".join(f"{name} (SHA-256 {str(digest)[:12]})" for name, digest in models.items())
    return f"model {listed}" if listed else "no stated model"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
