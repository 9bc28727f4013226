"""The demo's optimizer: steps along orthogonal matrices for what it takes, AdamW for the rest."""

import pytest
import torch
from torch import nn

from turbowan.demo.muon import MUON_RATE, Muon, orthogonal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8)], ids=str)
def test_orthogonal_keeps_the_directions_and_evens_the_lengths(generator, shape):
    matrices = torch.randn(shape, generator=generator)
    matrices += 5 * matrices[:, :1, :1]  # one direction well above the others
    out = orthogonal(matrices).float()
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    along = (u.mT @ out @ vh.mT).diagonal(dim1=1, dim2=2)
    assert along.min() > 0.2


class Net(nn.Module):
    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)
        self.unused = nn.Conv2d(4, 6, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x):
        return self.conv(x).square().mean()


def test_a_step_moves_a_convolution_by_an_orthogonal_matrix_and_leaves_out_what_has_no_gradient(generator):
    net, rate = Net(generator), 1e-3
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    muon = Muon(net.named_parameters(), lr=rate, takes=lambda name, parameter: name.endswith("weight"))
    net(torch.randn(2, 4, 6, 6, generator=generator)).backward()
    muon.step()
    moved = {name: before[name] - parameter.detach() for name, parameter in net.named_parameters()}
    lengths = torch.linalg.svdvals(moved["conv.weight"].flatten(1)) / (MUON_RATE * rate)
    assert 0.3 < lengths.min() <= lengths.max() < 1.3
    assert moved["conv.bias"].abs().max() == pytest.approx(rate, rel=0.01)  # AdamW's first step
    assert not moved["unused.weight"].any()
    assert not moved["unused.bias"].any()


def test_by_default_it_takes_a_transformers_inner_matrices(generator):
    net = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(8, 8)]), "head": nn.Linear(8, 8)})
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    muon = Muon(net.named_parameters(), lr=1e-3)
    x = torch.randn(4, 8, generator=generator)
    net["head"](net["blocks"][0](x)).square().mean().backward()
    muon.step()
    moved = {name: (before[name] - p.detach()).abs().max().item() for name, p in net.named_parameters()}
    assert moved["blocks.0.weight"] > 1.5e-3  # Muon's rate is larger
    assert moved["blocks.0.bias"] == pytest.approx(1e-3, rel=0.01)
    assert moved["head.weight"] == pytest.approx(1e-3, rel=0.01)
