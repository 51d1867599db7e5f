"""Time a training step and the enhancement of a patch on this machine, to estimate the cost of a grid.

    python -m benchmarks.paper.timing '{"network": "aniso-unet", "upsampling_factor": 4, ...}' cpu 1

Prints JSON. Runs in a process of its own, because the rest does not need PyTorch.
"""

from __future__ import annotations

import json
import sys
import time

STEPS = 3  #: timed steps, after one for warming up


def main(train: dict, device: str, threads: int) -> dict[str, float]:
    """Time the network of a cell.

    Parameters
    ----------
    train
        Settings of iqtflow's section ``[train]``.
    device
        "cpu" or "cuda".
    threads
        CPU threads.

    Returns
    -------
    dict
        Seconds of a step ("step_s") and of the enhancement of a patch ("patch_s"), and "parameters".
    """
    import torch

    from iqtflow.models.registry import allow_network, build_network, choose_settings

    torch.set_num_threads(threads)
    name, k = train.get("network", "aniso-unet"), train["upsampling_factor"]
    allow_network(name)
    wanted = {"k": k, **{key: train[key] for key in ("filters", "shrink", "residual") if key in train}}
    settings = choose_settings(name, wanted, {**wanted, "k": None})
    network = build_network(name, **settings).to(device, memory_format=torch.channels_last_3d)
    optimiser = torch.optim.Adam(network.parameters())
    low = torch.rand(train["batch_size"], 1, 32, 32, 32 // k, device=device)
    high = torch.rand(train["batch_size"], 1, 32, 32, 32, device=device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = torch.nn.functional.mse_loss(network(low), high)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def patch() -> None:
        with torch.inference_mode():
            network(low)

    seconds = {}
    for name, work, share in (("step_s", step, 1), ("patch_s", patch, train["batch_size"])):
        work()
        taken = []
        for _ in range(STEPS):
            began = _now(device)
            work()
            taken.append(_now(device) - began)
        seconds[name] = min(taken) / share  # the one least disturbed by other programs
    return {**seconds, "parameters": sum(p.numel() for p in network.parameters())}


def _now(device: str) -> float:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
