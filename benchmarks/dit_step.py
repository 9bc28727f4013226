"""Time one network step at released size on this GPU, after checking the kernels against their references.

    python -m turbowan.benchmarks.dit_step --model 1.3b --size 832x480x81 [--profile]

Medians of CUDA events after warm-up; peak memory as torch allocates it. Rows differ in weights and attention mode.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from turbowan.benchmarks import synthetic
from turbowan.benchmarks.request import size_argument, size_text
from turbowan.kernels import (
    block_int8,
    channel_int8,
    dispatch,
    key_pass,
    norm,
    qk_norm,
    routing,
    row_codes,
    sla,
    text_attention,
)
from turbowan.kernels.compile_ahead import compile_ahead
from turbowan.turbo_core import rope
from turbowan.turbo_core.attention import AttentionSettings
from turbowan.turbo_core.channelwise import to_row_codes
from turbowan.turbo_core.config import WanConfig
from turbowan.turbo_core.model import TurboWan
from turbowan.turbo_core.vae import latent_size

TOPK = 0.1
RELATIVE_ERROR_LIMIT = 1e-2  # 16-bit results are near 2e-3 and codes of them below 6e-3; a wrong kernel is near 1


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    quantized: bool
    mode: str
    activation_rows: int = 1
    codes: torch.dtype | None = None  # of weights rounded to one scale per output channel


ROWS = (
    Row(name="int8 + sagesla", quantized=True, mode="sagesla"),
    Row(name="int8 + sla", quantized=True, mode="sla"),
    Row(name="int8 exact + sla", quantized=True, mode="sla", activation_rows=128),
    Row(name="channelwise + sagesla", quantized=True, mode="sagesla", codes=torch.int8),
    Row(name="fp8 + sagesla", quantized=False, mode="sagesla", codes=torch.float8_e4m3fn),
    Row(name="fp8 + sla", quantized=False, mode="sla", codes=torch.float8_e4m3fn),
    Row(name="bf16 + sla", quantized=False, mode="sla"),
    Row(name="bf16 + dense", quantized=False, mode="dense"),
)


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    out, ref = out.double(), ref.double()
    return float((out - ref).norm() / ref.norm())


def check_kernels(device: torch.device) -> None:
    """Raise unless every kernel agrees with its reference at an odd size."""
    probes = ("run_probe", "run_channel_probe", "run_attention_probe")
    compile_ahead(lambda: kernel_errors(device), device, gluon_probes=probes)  # in parallel
    for name, error in kernel_errors(device).items():
        print(f"check {name:16s} relative error {error:.2e}")
        if not error < RELATIVE_ERROR_LIMIT:
            raise SystemExit(f"{name} is wrong ({error:.2e}): nothing is timed")


def kernel_errors(device: torch.device) -> dict[str, float]:
    """Each kernel's error to its reference."""
    generator = torch.Generator(device=device).manual_seed(1)
    batch, length, heads, dim, wide = 2, 1057, 2, 256, 384
    half = {"device": device, "dtype": torch.bfloat16, "generator": generator}
    x = torch.randn(batch, length, dim, **half)
    v = torch.randn(batch, length, heads, 128, **half)
    w = block_int8.quantize_weight(torch.randn(wide, dim, device=device, generator=generator) / dim**0.5)
    errors = {}
    for rows in (1, 128):
        a = block_int8.quantize_activations_ref(x, rows)
        y = block_int8.linear(block_int8.quantize_activations(x, rows), w, None, gelu=True, like=x)
        errors[f"linear rows={rows}"] = relative_error(y, block_int8.linear_ref(a, w, None, True, torch.float32))
    errors |= attention_errors(x, v, generator)
    gate = torch.randn(batch, dim, device=device, generator=generator)
    errors["layer_norm"] = relative_error(
        norm.layer_norm(x, gate, gate, 1e-6), norm.layer_norm_ref(x.float(), gate, gate, 1e-6)
    )
    weight_row, table = gate[0], rope.rotation((length, 1, 1), 128, device)
    out = norm.rms_norm_rope(x, weight_row, 1e-6, table)
    errors["rms_norm_rope"] = relative_error(out, norm.rms_norm_rope_ref(x.float(), weight_row, 1e-6, table))
    errors["gated_residual"] = relative_error(
        norm.gated_residual(x, x, gate), norm.gated_residual_ref(x.float(), x.float(), gate)
    )
    exact = norm.layer_norm_ref(x.float(), gate, gate, 1e-6)
    errors["layer_norm int8"] = codes_error(norm.layer_norm_quantized(x, gate, gate, 1e-6), exact)
    hidden = block_int8.linear_quantized(block_int8.quantize_activations(x), w, None, gelu=True, like=x)
    ref = block_int8.linear_ref(block_int8.quantize_activations_ref(x), w, None, True, torch.float32)
    errors["linear int8 out"] = codes_error(hidden, ref)
    y, squares = block_int8.linear_with_squares(block_int8.quantize_activations(x), w, None, like=x)
    errors["linear squares"] = relative_error(squares, block_int8.row_squares_ref(y))
    text = v[:, :512].clone()
    text[:, 100:] = text[:, 99:100]
    repeats = text_attention.trailing_repeats(text.flatten(2))
    codes = text_attention.text_attention_quantized(v, text, text, 1e-6, repeats=repeats)
    ref = text_attention.text_attention_ref(v.float(), text.float(), text.float(), 1e-6).flatten(2)
    errors["text attention"] = codes_error(codes, ref)
    return errors | row_codes_errors(x, w.dequantize(torch.float32), gate)


def codes_error(codes: block_int8.QuantizedActivations | row_codes.RowCodes, exact: torch.Tensor) -> float:
    """Error to the codes of the exact result, so that what any rounding to 8 bits costs is not counted."""
    if isinstance(codes, row_codes.RowCodes):
        ref = row_codes.quantize_rows_ref(exact, codes.dtype)
    else:
        ref = block_int8.quantize_activations_ref(exact)
    return relative_error(codes.dequantize(torch.float32), ref.dequantize(torch.float32))


def row_codes_errors(x: torch.Tensor, w: torch.Tensor, gate: torch.Tensor) -> dict[str, float]:
    """Errors of the int8 kernels with one scale per row."""
    a, w_codes = row_codes.quantize_rows_ref(x, torch.int8), row_codes.quantize_rows_ref(w, torch.int8)
    y = channel_int8.linear(row_codes.quantize_rows(x, torch.int8), w_codes, None, gelu=False, like=x)
    bias, residual = w[:, 0].to(x.dtype), block_int8.GatedResidual(y.reshape(*x.shape[:-1], -1), w.T[: len(x)])
    gated = channel_int8.linear(a, w_codes, bias, gelu=False, like=x, residual=residual).reshape(residual.x.shape)
    gated_ref = residual.add(channel_int8.linear_ref(a, w_codes, bias, False, torch.float32))
    exact = norm.layer_norm_ref(x.float(), gate, gate, 1e-6)
    hidden = torch.nn.functional.gelu(x.float(), approximate="tanh")
    return {
        "channelwise": relative_error(y, channel_int8.linear_ref(a, w_codes, None, False, torch.float32)),
        "channelwise gated": relative_error(gated, gated_ref),
        "layer_norm rows": codes_error(norm.layer_norm_rows(x, gate, gate, 1e-6, torch.int8), exact),
        "gelu rows": codes_error(row_codes.quantize_rows(x, torch.int8, gelu=True), hidden),
    }


def attention_errors(x: torch.Tensor, v: torch.Tensor, generator: torch.Generator) -> dict[str, float]:
    """Every kernel of self-attention against the references in fp32: x [B, L, C] makes queries and keys."""
    (_, length, heads, dim), device = v.shape, v.device
    table = rope.rotation((length, 1, 1), dim, device)
    weight, bias = (torch.randn(*shape, device=device, generator=generator) / 11 for shape in ((dim, dim), (dim,)))
    norm_weight = 1 + 0.2 * torch.randn(heads * dim, device=device, generator=generator)
    errors = {}
    for mode, int8 in (("sla", False), ("sagesla", True)):
        q = qk_norm.qk_norm(x, norm_weight, 1e-6, table, heads, routing.BLOCK_Q, int8)
        k = qk_norm.qk_norm(x.flip(1), norm_weight, 1e-6, table, heads, routing.BLOCK_K)
        ref = qk_norm.qk_norm_ref(x.float(), norm_weight, 1e-6, table, heads, routing.BLOCK_Q)
        errors[f"{mode} norm"] = relative_error(q.x, ref.x)
        inputs = sla.prepare(q, k, v, weight, bias, 0.2)
        keys = key_pass.key_pass_ref(k.x, v, inputs.keys.ball.centre, weight, bias, int8)
        exact = dataclasses.replace(inputs, q=q.x.float(), k=k.x.float(), v=v.float(), keys=keys)
        expected = sla.attend_ref(exact)
        errors[mode] = relative_error(sla.attend(inputs), expected)
        errors[f"{mode} int8 out"] = codes_error(sla.attend_quantized(inputs), expected.flatten(2))
    return errors


def build(config: WanConfig, row: Row, tensors: Mapping[str, torch.Tensor]) -> TurboWan:
    """A network over `tensors` (native names, int8 codes where `row.quantized`) as the row wants it."""
    if row.codes is not None:
        tensors, noise = to_row_codes(tensors, row.codes, tensors["head.modulation"].device)
        print(f"weights as {row.codes}: {noise}")
    net = TurboWan(config, device="meta")
    net.load(tensors)
    return net


def prepare(net: TurboWan, row: Row) -> None:
    """Settings that rows of the same weights do not share."""
    net.attention = AttentionSettings(mode=row.mode, topk=TOPK)
    net.set_activation_rows(row.activation_rows)


def prompt_of(net: TurboWan, prompt: int) -> torch.Tensor:
    """Random text states of `prompt` tokens, zero-padded to 512 as the text encoder's are."""
    context = torch.randn(1, 512, net.config.text_dim, device=net.head.modulation.device, dtype=torch.bfloat16)
    context[:, prompt:] = 0
    return context


def measure(
    net: TurboWan, row: Row, latent: tuple[int, int, int], repeats: int, prompt: int
) -> tuple[float, float, float]:
    """First-call seconds, median milliseconds and peak GiB of a forward."""
    device = net.head.modulation.device
    prepare(net, row)
    x = torch.randn(1, net.config.in_dim, *latent, device=device, dtype=torch.bfloat16)
    context = prompt_of(net, prompt)
    timestep = torch.tensor([988.0], device=device)
    started = time.perf_counter()
    net.compile_ahead(x, timestep, context)
    out = net(x, timestep, context)
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    if not torch.isfinite(out).all():
        raise SystemExit(f"{row.name}: the output is not finite; nothing is timed")
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        net(x, timestep, context)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return first, statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


def profile(net: TurboWan, latent: tuple[int, int, int], prompt: int) -> None:
    device = net.head.modulation.device
    x = torch.randn(1, net.config.in_dim, *latent, device=device, dtype=torch.bfloat16)
    context = prompt_of(net, prompt)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        net(x, torch.tensor([988.0], device=device), context)
        torch.cuda.synchronize()
    print(trace.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=60))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=synthetic.MODELS, default="1.3b")
    parser.add_argument("--size", type=size_argument, default="832x480x81", help="width x height x frames")
    parser.add_argument("--prompt", type=int, default=512, help="text tokens before the padding")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--torch", action="store_true", help="without Triton, as on sm75 or where it is missing")
    arguments = parser.parse_args()
    device = torch.device("cuda")
    width, height, frames = arguments.size
    latent = latent_size(frames, height, width)
    if arguments.torch:
        dispatch.triton_refusal = lambda *_: "the benchmark asked for torch"
    else:
        check_kernels(device)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.model}, {size_text(arguments.size)}")
    config = synthetic.MODELS[arguments.model]
    net, built = None, None
    for row in ROWS:
        if arguments.rows not in row.name or (arguments.torch and row.mode == "sagesla"):
            continue
        if built != (row.quantized, row.codes):
            del net
            torch.cuda.empty_cache()
            tensors = synthetic.tensors(config, device, quantized=row.quantized)
            net, built = build(config, row, tensors), (row.quantized, row.codes)
            del tensors
        first, step, peak = measure(net, row, latent, arguments.repeats, arguments.prompt)
        print(f"{row.name:22s} {step:9.1f} ms a step, first call {first:6.1f} s, peak {peak:6.2f} GiB", flush=True)
        if arguments.profile:
            profile(net, latent, arguments.prompt)


if __name__ == "__main__":
    main()
