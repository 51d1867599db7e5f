"""Training one network as a node, and joining networks to an ensemble."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from iqtflow.interfaces.base import ChildCommand, ChildCommandInputSpec


class _TrainInputSpec(ChildCommandInputSpec):
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
        desc="folder of the checkpoints, outside the node's own (which is emptied before a re-run), to go on "
        "from after an interruption; within it when not given",
    )
    name = traits.Str(argstr="--name %s", desc="the model's name")
    card_file = File(exists=True, argstr="--card %s", desc="JSON with more fields for the model's card")
    network = traits.Str(
        "aniso-unet",
        usedefault=True,
        argstr="--network %s",
        desc="name in the registry of networks, of an entry point, or module:attribute",
    )
    network_options = traits.List(
        traits.Str, argstr="--network-option %s...", desc="settings that only this network has: name=value"
    )
    upsampling_factor = traits.Int(4, usedefault=True, argstr="--k %d", desc="k")
    filters = traits.Int(16, usedefault=True, argstr="--filters %d", desc="channels of the first level")
    shrink = traits.Int(
        2, usedefault=True, argstr="--shrink %d", desc="b: shrinking layers of each bottleneck block"
    )
    start_from = traits.Either(
        File(exists=True),
        traits.Str,
        argstr="--start-from %s",
        desc="model whose weights training begins with: a file, or the name of one that ships",
    )
    residual = traits.Bool(True, usedefault=True, desc="learn what to add to the cubic spline")
    uncertainty = traits.Enum(
        *("learn", "only", "none"),
        usedefault=True,
        argstr="--uncertainty %s",
        desc="learn the error to be expected of the estimate too, that alone (of start_from), or not",
    )
    batch_size = traits.Int(32, usedefault=True, argstr="--batch-size %d", desc="patches in a step")
    learning_rate = traits.Float(
        1e-3, usedefault=True, argstr="--learning-rate %g", desc="of Adam, at the first step"
    )
    schedule = traits.Enum(
        "decay", "cosine", usedefault=True, argstr="--schedule %s", desc="of the learning rate"
    )
    loss = traits.Enum("mse", "l1", usedefault=True, argstr="--loss %s", desc="what is minimised")
    steps = traits.Int(argstr="--steps %d", desc="steps at most")
    steps_per_epoch = traits.Int(
        100, usedefault=True, argstr="--steps-per-epoch %d", desc="steps between validations"
    )
    max_epochs = traits.Int(30, usedefault=True, argstr="--max-epochs %d", desc="validations at most")
    patience = traits.Int(
        5,
        usedefault=True,
        argstr="--patience %d",
        desc="epochs without a better validation loss before stopping; 0: never",
    )
    validation_batches = traits.Int(
        12, usedefault=True, argstr="--validation-batches %d", desc="batches that a validation takes"
    )
    patch_size = traits.Int(argstr="--patch-size %d", desc="edge of high-field patches in voxels; 32, or 48")
    draws = traits.Either(
        traits.Enum("fresh"), traits.Int, argstr="--draws %s", desc="fresh, or N stored draws"
    )
    snr_prior = traits.Str(
        "ibadan-0.36T",
        usedefault=True,
        argstr="--prior %s",
        desc="SNR prior: a published one by name, or a JSON file",
    )
    thickness_fraction = traits.Tuple(
        (0.75, 0.75),
        usedefault=True,
        argstr="--thickness-fraction %g %g",
        desc="slice thickness over spacing, range",
    )
    snr_scale = traits.Tuple(
        (1.0, 1.0), usedefault=True, argstr="--snr-scale %g %g", desc="factor on both tissues' SNR, range"
    )
    bias_amplitude = traits.Float(
        0.0, usedefault=True, argstr="--bias-amplitude %g", desc="largest log-amplitude of a smooth shading"
    )
    mirror = traits.Bool(False, usedefault=True, desc="mirror patches and swap the in-plane axes")
    seed = traits.Int(0, usedefault=True, argstr="--seed %d", desc="of initialisation and of every draw")
    num_threads = traits.Int(
        1, usedefault=True, nohash=True, argstr="--num-threads %d", desc="CPU threads of the network"
    )
    device = traits.Enum(
        "cpu", "cuda", usedefault=True, nohash=True, argstr="--device %s", desc="where to train"
    )
    devices = traits.Int(
        1, usedefault=True, nohash=True, argstr="--devices %d", desc="GPUs or processes of each computer"
    )
    num_nodes = traits.Int(
        1, usedefault=True, nohash=True, argstr="--num-nodes %d", desc="computers, in a SLURM allocation"
    )
    tensorboard = traits.Str(nohash=True, argstr="--tensorboard %s", desc="folder of curves for TensorBoard")
    use_gpu = traits.Bool(
        False, usedefault=True, nohash=True, desc="count this node against the scheduler's GPU slots"
    )


class _TrainOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="model of one network (.safetensors)")
    curves_file = File(exists=True, desc="training curves (.csv)")


class TrainModel(ChildCommand):
    """Train one network on patch libraries, with fresh draws for every batch; goes on from its last
    checkpoint after an interruption.
    """

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
        """The command; on several computers SLURM starts it, once for each device."""
        nodes, devices = self.inputs.num_nodes, self.inputs.devices
        if nodes == 1:
            return super().cmdline
        return f"srun --nodes={nodes} --ntasks-per-node={devices} {super().cmdline}"

    def _list_outputs(self):
        return {
            "out_file": os.path.abspath(self.inputs.out_file),
            "curves_file": os.path.abspath(self.inputs.curves_file),
        }


class _EnsembleInputSpec(BaseInterfaceInputSpec):
    members = InputMultiObject(
        File(exists=True),
        mandatory=True,
        desc="models of one network each, trained alike from different seeds",
    )
    name = traits.Str(mandatory=True, desc="the ensemble's name")
    card = traits.Dict(desc="more fields for the card's section on training")


class _ModelOutputSpec(TraitedSpec):
    out_file = File(exists=True, desc="model (.safetensors)")


class JoinEnsemble(SimpleInterface):
    """Join networks to one model file whose prediction is their mean, with their standard deviation as
    uncertainty.
    """

    input_spec = _EnsembleInputSpec
    output_spec = _ModelOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.models.model_file import join_models
        from iqtflow.utils.files import require_name

        out = os.path.join(runtime.cwd, f"{require_name(self.inputs.name, 'name')}.safetensors")
        extra = dict(self.inputs.card) if isdefined(self.inputs.card) else {}
        join_models(out, self.inputs.members, name=self.inputs.name, training=extra)
        self._results["out_file"] = out
        return runtime


class _StampInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="model")
    summary_file = File(exists=True, mandatory=True, desc="JSON with its figures on evaluation subjects")


class StampFigures(SimpleInterface):
    """Write a model's figures on evaluation subjects into its card; the weights stay as they are."""

    input_spec = _StampInputSpec
    output_spec = _ModelOutputSpec

    def _run_interface(self, runtime):
        from iqtflow.models.model_file import stamp_figures

        out = os.path.join(runtime.cwd, os.path.basename(self.inputs.in_file))
        stamp_figures(self.inputs.in_file, out, json.loads(Path(self.inputs.summary_file).read_text()))
        self._results["out_file"] = out
        return runtime
