"""The pipeline without ComfyUI on this GPU: seconds and peak memory by stage, weights resident and lent layer by layer.

    python -m turbowan.benchmarks.standalone [--model 1.3b] [--size 832x480x81] [--folder DIR]

Files are random, of released size and layout, and written to the folder (1.3B: 11 GB in all, 5 of them the text
encoder); one that is there already is used. A latent made with lent weights must equal the one of resident weights,
else the run ends there. The estimate is `expert.working_bytes`; one below what was measured is marked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av  # noqa: F401  # a file's writer wants it after minutes of work: without it, end at once
import torch
from safetensors.torch import save_file
from torch import Tensor

from turbowan.benchmarks import random_vae, synthetic
from turbowan.benchmarks.request import size_argument
from turbowan.benchmarks.timing import GIB
from turbowan.turbo_core.expert import Expert, NetworkSettings, working_bytes
from turbowan.turbo_core.pipeline import ModelFiles, Pipeline
from turbowan.turbo_core.request import Request
from turbowan.turbo_core.text_encoder import TextEncoder
from turbowan.turbo_core.umt5_file import UMT5Shape, expected_tensors
from turbowan.turbo_core.video_file import VideoFile
from turbowan.turbo_core.video_size import FPS

GPU = torch.device("cuda")
FP8_MAX = 448.0
UMT5_XXL = UMT5Shape(
    vocabulary=1024, dim=4096, ffn_dim=10240, num_heads=64, head_dim=64, num_layers=24, buckets=32
)  # but for its vocabulary, of which only a prompt's rows are read
PROMPT = "a red ball bouncing to the right, then up and over a grey wall " * 6
ROWS = ((True, "sagesla"), (True, "sla"), (False, "sla"))
LENT = (0.5, 0.0)  # shares of the weights that are resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("1.3b", "14b"), default="1.3b")
    parser.add_argument("--size", type=size_argument, default=(832, 480, 81), help="width x height x frames")
    parser.add_argument("--folder", type=Path, help="where the random files are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {arguments.model}, {arguments.size}")
        time_encoder(folder)
        for quantized, attention in ROWS:
            time_network(folder, arguments.model, arguments.size, quantized, attention)


def time_encoder(folder: Path) -> None:
    path = written(folder / "umt5.safetensors", umt5_tensors)
    for label, count in (("first", 1), ("again", 1), ("16 prompts", 16)):
        encoder = TextEncoder.open(path)
        (states, *_), seconds, peak = measured(
            lambda encoder=encoder, count=count: encoder.encode([PROMPT] * count, GPU)
        )
        assert torch.isfinite(states).all()
        print(f"text encoder, {len(encoder.tokens(PROMPT))} tokens, {label}: {seconds:.2f} s, {peak:.2f} GiB")


def time_network(folder: Path, model: str, size: tuple[int, int, int], quantized: bool, attention: str) -> None:
    config = synthetic.MODELS[model]
    network = folder / f"{model}{'-quant' if quantized else ''}.safetensors"
    files = ModelFiles(
        network=written(network, lambda: synthetic.tensors(config, GPU, quantized=quantized)),
        vae=written(folder / "vae.safetensors", lambda: random_vae.tensors(96)),
        text_encoder=folder / "umt5.safetensors",
    )
    request = Request(prompt=PROMPT, size=size[:2], frames=size[2], seed=1)
    text = torch.randn(1, 512, config.text_dim, generator=torch.Generator().manual_seed(0))
    pipeline = Pipeline(files, NetworkSettings(attention=attention), GPU)
    _, first, _ = measured(lambda: pipeline.sample(request, text))
    latent, seconds, peak = measured(lambda: pipeline.sample(request, text))
    expert = pipeline._experts["high"]
    tokens = latent.shape[2:].numel() // config.patch_volume
    working, estimate = peak - expert.nbytes / GIB, working_bytes(expert.network.config, tokens) / GIB
    row = f"{network.stem} {attention}"
    print(
        f"{row}: 4 steps {seconds:.2f} s (first {first:.2f}), {peak:.2f} GiB, beside weights "
        f"{working:.2f} (estimate {estimate:.2f}{', TOO LOW' if working > estimate else ''})"
    )
    _, seconds, peak = measured(lambda: decode(pipeline, latent, request, folder / "video.mp4"))
    print(f"{row}: decode and MP4 {seconds:.2f} s, {peak:.2f} GiB")
    pipeline.release()
    for share, lent, seconds, peak in lent_runs(files, attention, request, text, tokens):
        assert torch.equal(lent, latent), f"{row}: lent weights must not change the latent"
        print(f"{row}: 4 steps with {share:.0%} of the weights resident {seconds:.2f} s, {peak:.2f} GiB")


def lent_runs(
    files: ModelFiles, attention: str, request: Request, text: Tensor, tokens: int
) -> Iterator[tuple[float, Tensor, float, float]]:
    """(share of resident weights, latent, seconds, GiB) of warm runs."""
    for share in LENT:
        pipeline = Pipeline(files, NetworkSettings(attention=attention), GPU)
        expert = Expert(pipeline._sources["high"], pipeline.settings, GPU, pipeline.dtype)
        expert.bring(working_bytes(expert.network.config, tokens) + int(share * expert.nbytes), tokens)
        expert.bring = lambda *_: None
        pipeline._experts["high"] = expert
        pipeline.sample(request, text)
        yield share, *measured(lambda pipeline=pipeline: pipeline.sample(request, text))
        expert.release()


def decode(pipeline: Pipeline, latent: Tensor, request: Request, path: Path) -> None:
    with VideoFile(path, request.size, request.frames, FPS, {}) as file:
        pipeline.decode(latent, file.write)


def measured(run: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    """The result, the seconds and the GiB at the peak."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return result, time.perf_counter() - started, torch.cuda.max_memory_allocated() / GIB


def written(path: Path, make: Callable[[], dict[str, Tensor]]) -> Path:
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file({name: tensor.cpu().contiguous() for name, tensor in make().items()}, partial)
        partial.replace(path)
        torch.cuda.empty_cache()
    return path


def umt5_tensors() -> dict[str, Tensor]:
    """Random umT5-XXL in scaled fp8, with a small sentencepiece model."""
    generator = torch.Generator(device=GPU).manual_seed(0)
    tensors: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, shape in expected_tensors(UMT5_XXL):
        weight = torch.randn(shape, generator=generator, device=GPU)
        if "norm" in name:
            tensors[name] = (1 + 0.1 * weight).half()
        elif "relative" in name or name.startswith("shared"):
            tensors[name] = weight.half()
        else:
            weight = weight / shape[1] ** 0.5
            scale = weight.abs().max() / FP8_MAX
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
    tensors["spiece_model"] = torch.frombuffer(bytearray(spiece_model()), dtype=torch.uint8)
    return tensors


def spiece_model() -> bytes:
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT] * 4), model_writer=model, vocab_size=64, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


if __name__ == "__main__":
    main()
