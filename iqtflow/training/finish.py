"""What is done with the best weights at the end of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.optim.swa_utils import update_bn

from iqtflow.training.averaging import Weights, average_with_start
from iqtflow.training.module import TrainingModule

#: Batches from which the statistics of batch normalisation are computed.
STATISTICS_BATCHES = 40


def finish(
    module: TrainingModule, last: Weights | None, before: Weights | None, *, half: bool
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Average the best weights with those before; compute the statistics of batch normalisation again.

    The running statistics of batch normalisation change slowly, with Keras' constant by 1 % in a step. After
    few steps they still contain their first values, and the validation loss says little about the weights.
    Exact values come from training batches (Wu and Johnson 2021, section 3, arXiv:2105.07576), for the best
    weights and for the last ones. What has the lowest validation loss is kept.

    Parameters
    ----------
    module
        With the best weights, on the device of the training.
    last
        State of the module after the last step; None where these are the best weights. Where weights are
        averaged, it is not used: it is not the average.
    before
        Weights at the start, to average with; None: no average.
    half
        Whether the training used bfloat16.

    Returns
    -------
    weights : dict
        On the CPU.
    facts : dict
        Of the card, each only where it was computed: ``averaged`` as from `average_with_start`;
        ``statistics`` with the number of batches, the validation loss of the best weights with their running
        statistics, with exact ones, and of the last weights with exact ones, and which was kept;
        ``best_validation_loss``.
    """
    judged = module.judged.eval()
    facts: dict[str, Any] = {}
    moved = partial(module.transfer_batch_to_device, device=module.device, dataloader_idx=0)
    autocast = partial(torch.autocast, module.device.type, torch.bfloat16, enabled=half)

    @torch.inference_mode()
    def validation_loss(weights: Weights) -> float:
        judged.load_state_dict(weights)
        numbers = range(module.plan.validation_batches)
        with autocast():
            losses = [module.losses(judged, moved(module.samplers[1].batch(n)))[1] for n in numbers]
        return float(torch.stack(losses).mean())

    kept = _copy(judged)
    if before is not None:
        kept, facts["averaged"] = average_with_start(
            before, kept, validation_loss, str(module.plan.start_from)
        )
        facts["best_validation_loss"] = min(facts["averaged"]["validation_loss"].values())
    if _has_statistics(judged) and not module.plan.only_uncertainty:
        count = min(STATISTICS_BATCHES, module.plan.total_steps)
        choices = {"running": kept}
        losses = {"running": validation_loss(kept)}
        states = (
            {"exact": None} if last is None or before is not None else {"exact": None, "last, exact": last}
        )
        for name, state in states.items():
            if state is not None:
                module.load_state_dict(state)
            with autocast(), module.way_around_short_convolutions():
                update_bn(_scans(module, moved, count), judged)
            choices[name] = _copy(judged)
            losses[name] = validation_loss(choices[name])
        better = min(losses, key=losses.__getitem__)
        kept = choices[better]
        facts["statistics"] = {"batches": count, "kept": better, "validation_loss": losses}
        facts["best_validation_loss"] = min(losses.values())
    return {name: value.detach().cpu().contiguous() for name, value in kept.items()}, facts


def _has_statistics(network: torch.nn.Module) -> bool:
    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in network.modules())


def _scans(
    module: TrainingModule, moved: Callable[[Any], dict[str, Any]], count: int
) -> Iterator[torch.Tensor]:
    for n in range(count):
        yield module.simulate(moved(module.samplers[0].batch(n)))[0]


def _copy(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
