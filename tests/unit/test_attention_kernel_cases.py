import torch

from turbowan.benchmarks import attention_kernels


def test_the_benchmark_compares_the_same_operations() -> None:
    """Off the GPU both sides are torch: in 16-bit as the kernels get it, and in fp32."""
    inputs = attention_kernels.Inputs(torch.device("cpu"), 300, 2, 128, 0.4)
    for case in attention_kernels.cases(inputs):
        assert attention_kernels.error(case, case.ours()) < attention_kernels.RELATIVE_ERROR_LIMIT, case.name
