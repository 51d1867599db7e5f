"""Muon: which weights it moves, how far, and that the rest moves as with AdamW."""

from __future__ import annotations

import pytest
import torch

from iqtflow.models.registry import build_network
from iqtflow.training.optimisers import Muon, orthogonalise, split_parameters


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (32, 32)])
def test_all_directions_of_a_matrix_become_equally_long(shape):
    torch.manual_seed(0)
    left, lengths, right = torch.linalg.svd(torch.randn(shape) * 100, full_matrices=False)
    lengths = torch.logspace(0, -1, len(lengths)) * 100
    found = orthogonalise(left @ torch.diag(lengths) @ right)
    assert found.shape == shape
    ratio = torch.linalg.svdvals(found)
    assert 0.6 < ratio.min() <= ratio.max() < 1.3


def test_first_and_last_layers_and_biases_are_left_to_adam():
    network = build_network("subpixel-unet", k=4, uncertainty=True)
    names = {id(value): name for name, value in network.named_parameters()}
    matrices, others = split_parameters(network)
    assert len(matrices) + len(others) == len(names)
    by_adam = {names[id(value)] for value in others}
    assert {"stem.weight", "head.weight"} < by_adam
    assert all(name in by_adam for name in names.values() if name.endswith("bias") or "error_head" in name)
    assert {names[id(value)] for value in matrices} >= {"encoder.0.0.first.weight", "downs.0.weight"}


def test_what_muon_does_not_move_moves_as_with_adamw():
    def train(make):
        torch.manual_seed(0)
        network = torch.nn.Conv3d(4, 8, 3)
        optimiser = make(network)
        for seed in range(5):
            x = torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(seed))
            optimiser.zero_grad()
            network(x).square().mean().backward()
            optimiser.step()
        return network.weight.detach()

    ours = train(lambda network: Muon(network, 1e-2))
    theirs = train(
        lambda network: torch.optim.AdamW(network.parameters(), 1e-2, betas=(0.9, 0.99), weight_decay=1e-4)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_step_of_muon_is_as_long_as_one_of_adam():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(32, 64, 3, bias=False)
    before = network.weight.detach().clone()
    network.weight.grad = torch.randn_like(before) * 1e-4
    Muon(network, 1e-3, weight_decay=0).step()
    moved = (network.weight.detach() - before).square().mean().sqrt()
    assert moved == pytest.approx(0.2e-3, rel=0.3)


def test_a_step_does_not_depend_on_the_size_of_the_gradient():
    results = []
    for scale in (1.0, 1e4):
        torch.manual_seed(0)
        network = torch.nn.Conv3d(16, 16, 3, bias=False)
        network.weight.grad = torch.randn_like(network.weight) * scale
        Muon(network, 1e-3).step()
        results.append(network.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-7)
