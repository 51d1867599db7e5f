"""Training one network as a node, and joining networks to an ensemble."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from iqtflow.config import OF_ONE_NETWORK, SETTINGS
from iqtflow.interfaces.base import ChildCommand, NetworkInputSpec, setting_trait

#: Changes of inputs: both switches are always written out, and the number of devices is not hashed.
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"argstr": None} for name in ("residual", "mirror")},
    **{name: {"nohash": True} for name in ("devices", "num_nodes")},
}


class _TrainInputSpec(NetworkInputSpec):
    train_libraries = InputMultiObject(
        File(exists=True), mandatory=True, argstr="--train %s", desc="patch libraries to train on"
    )
    validation_libraries = InputMultiObject(
        File(exists=True),
        mandatory=True,
        argstr="--validation %s",
        desc="patch libraries of other subjects, for early stopping",
    )
    out_file = File("member.safetensors", usedefault=True, argstr="--output %s", desc="name of the model")
    curves_file = File(
        "curves.csv", usedefault=True, argstr="--curves %s", desc="name of the table of training curves"
    )
    checkpoint_dir = traits.Str(
        nohash=True,
        argstr="--checkpoint-dir %s",
        desc="folder of the checkpoints, outside the node's folder, which is emptied before a re-run; needed "
        "to continue an interrupted training",
    )
    name = traits.Str(argstr="--name %s", desc="the model's name")
    card_file = File(exists=True, argstr="--card %s", desc="JSON with more fields for the model's card")
    vars().update({name: setting_trait("train", name, **CHANGES.get(name, {})) for name in OF_ONE_NETWORK})
    network_options = traits.List(
        traits.Str,
        argstr="--network-option %s...",
        desc=f"{SETTINGS['train']['network_options'].help}: name=value",
    )
    start_from = traits.Either(
        File(exists=True), traits.Str, argstr="--start-from %s", desc=SETTINGS["train"]["start_from"].help
    )
    seed = setting_trait("run", "seed")
    tensorboard = traits.Str(nohash=True, argstr="--tensorboard %s", desc="folder of curves for TensorBoard")


class _TrainOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="model of one network (.safetensors)")
    curves_file = File(exists=True, desc="training curves (.csv)")


class TrainModel(ChildCommand):
    """Train one network on patch libraries. An interrupted training continues from its last checkpoint."""

    module = "train"
    input_spec = _TrainInputSpec
    output_spec = _TrainOutputSpec

    def _parse_inputs(self, skip=None):
        switches = [
            f"--{'' if getattr(self.inputs, name) else 'no-'}{name}" for name in ("residual", "mirror")
        ]
        if not isdefined(self.inputs.checkpoint_dir):
            switches.append("--checkpoint-dir checkpoints")
        return [*super()._parse_inputs(skip=skip), *switches]

    @property
    def cmdline(self):
        """The command; on several computers SLURM starts it once for each device."""
        nodes, devices = self.inputs.num_nodes, self.inputs.devices
        if nodes == 1:
            return super().cmdline
        return f"srun --nodes={nodes} --ntasks-per-node={devices} {super().cmdline}"


class _EnsembleInputSpec(BaseInterfaceInputSpec):
    members = InputMultiObject(
        File(exists=True),
        mandatory=True,
        desc="models of one network each, trained alike from different seeds",
    )
    name = traits.Str(mandatory=True, desc="the ensemble's name")
    card = traits.Dict(desc="more fields for the card's section on training")
    cross_validation_file = File(
        exists=True,
        desc="JSON with the scores of models that were trained in the same way in a cross-validation",
    )


class _ModelOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="model (.safetensors)")


class JoinEnsemble(SimpleInterface):
    """Join networks to one model: its enhanced volume is their mean, its predicted error includes their
    standard deviation.
    """

    input_spec = _EnsembleInputSpec
    output_spec = _ModelOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.models.model_file import join_models
        from iqtflow.utils.files import require_name

        out = os.path.join(runtime.cwd, f"{require_name(self.inputs.name, 'name')}.safetensors")
        extra = dict(self.inputs.card) if isdefined(self.inputs.card) else {}
        if isdefined(self.inputs.cross_validation_file):
            extra["cross_validation"] = json.loads(Path(self.inputs.cross_validation_file).read_text())
        join_models(out, self.inputs.members, name=self.inputs.name, training=extra)
        self._results["out_file"] = out
        return runtime


class _StampInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="model")
    summary_file = File(exists=True, mandatory=True, desc="JSON with its scores on evaluation subjects")


class StampFigures(SimpleInterface):
    """Write a model's scores on evaluation subjects into its card; the weights do not change."""

    input_spec = _StampInputSpec
    output_spec = _ModelOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.models.model_file import stamp_figures

        out = os.path.join(runtime.cwd, os.path.basename(self.inputs.in_file))
        stamp_figures(self.inputs.in_file, out, json.loads(Path(self.inputs.summary_file).read_text()))
        self._results["out_file"] = out
        return runtime
