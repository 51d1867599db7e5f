"""All settings that decide the weights of a network."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from iqtflow.config import RunSettings, TrainSettings
from iqtflow.training.library import PATCH
from iqtflow.training.samplers import Degradation

FRESH = "fresh"  #: value of `TrainingPlan.draws`: every batch is simulated anew
#: Settings that came later. Cards and checkpoints leave them out at their defaults, as older versions did.
_LATER = (
    *("start_from", "only_uncertainty", "optimiser", "warmup", "clip", "averaging"),
    *("background_weight", "precision", "average_with_start"),
)
_LATER_DEGRADATION = (
    *("zoom", "spacing_jitter", "contrast_jitter", "stripes", "coarse_plane"),
    *("plane_blur", "noise"),
)


@dataclass(frozen=True)
class TrainingPlan:
    """All settings that decide the weights.

    `iqtflow.config.TrainSettings` describes the settings of the same names, and has their defaults. The
    others:

    Attributes
    ----------
    network_settings
        Keyword arguments for `iqtflow.models.registry.build_network`; ``k`` is one of them.
    degradation
        Range of the simulator's parameters. For stored draws only `mirror` applies, and `prior` must be the
        prior that they were drawn from.
    start_from
        Name and SHA-256 of the model that training starts from; None: it starts from random weights.
    only_uncertainty
        Train only the predicted error of the model in `start_from`; the enhanced volume stays the same. The
        loss is then the mean negative logarithm of the error's Gaussian likelihood, without its constant.
    patch_size
        Edge of the high-field patches in voxels.
    """

    network: str = TrainSettings.network
    network_settings: dict[str, Any] = field(
        default_factory=lambda: {
            "k": TrainSettings.upsampling_factor,
            "filters": TrainSettings.filters,
            "shrink": TrainSettings.shrink,
            "residual": TrainSettings.residual,
        }
    )
    batch_size: int = TrainSettings.batch_size
    learning_rate: float = TrainSettings.learning_rate
    schedule: str = TrainSettings.schedule
    loss: str = TrainSettings.loss
    steps: int | None = TrainSettings.steps
    steps_per_epoch: int = TrainSettings.steps_per_epoch
    max_epochs: int = TrainSettings.max_epochs
    patience: int = TrainSettings.patience
    seed: int = RunSettings.seed
    degradation: Degradation = field(default_factory=Degradation)
    start_from: str | None = TrainSettings.start_from
    only_uncertainty: bool = False
    draws: int | str = TrainSettings.draws
    patch_size: int = PATCH
    validation_batches: int = TrainSettings.validation_batches
    optimiser: str = TrainSettings.optimiser
    warmup: int = TrainSettings.warmup
    clip: float = TrainSettings.clip
    averaging: float = TrainSettings.averaging
    background_weight: float = TrainSettings.background_weight
    precision: str = TrainSettings.precision
    average_with_start: bool = TrainSettings.average_with_start

    @property
    def total_steps(self) -> int:
        """Steps of a training that does not stop early."""
        return self.steps if self.steps is not None else self.max_epochs * self.steps_per_epoch

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready fields, without later settings that are at their defaults."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        for part, usual, later in (
            (fields, TrainingPlan, _LATER),
            (fields["degradation"], Degradation, _LATER_DEGRADATION),
        ):
            for name in later:
                default = getattr(usual, name)
                if part[name] == (list(default) if isinstance(default, tuple) else default):
                    del part[name]
        return fields
