"""On a Hopper GPU the Gluon kernels must serve: other tests that ask for them skip where their probe fails."""

import pytest
import torch

from turbowan.kernels import dispatch


@pytest.mark.gpu
@pytest.mark.parametrize("probe", ["run_probe", "run_channel_probe", "run_attention_probe", "run_vae_probe"])
def test_the_probes_pass_on_hopper(probe, device):
    triton = pytest.importorskip("triton")
    if torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("not a Hopper GPU")
    if tuple(map(int, triton.__version__.split(".")[:2])) < dispatch.MIN_GLUON_TRITON:
        pytest.skip(f"Triton {triton.__version__} has no Gluon that these kernels know")
    assert dispatch.gluon_refusal(device, probe) is None
