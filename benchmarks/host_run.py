"""The shipped T2V workflow at released size through a real headless ComfyUI: time and memory of every stage.

    python -m turbowan.benchmarks.host_run --comfy DIR [--model 1.3b] [--size 832x480x81] [--steps 4]
    python -m turbowan.benchmarks.host_run --comfy DIR --dry-run          (no GPU, a tiny model, a tiny clip)

Writes a random quantized checkpoint in the released layout and a random Wan 2.1 VAE, starts ComfyUI, queues
`workflows/api/TurboWan_T2V.json` with other file names and a random conditioning for the text encoder pair, and
checks the MP4 that comes back. Four prompts that differ by seed: cold (load and JIT), warm, reloaded (weights back
from host memory after the host was told to unload), and one through images, with TurboVAEDecode, CreateVideo and
SaveVideo's own encoding in place of TurboVAEDecodeVideo. A step's time ends when the GPU has finished it
(`host_observer`), compiling kernels is a stage of its own (`prompt_stages`). The clip's bitrate is that of a real one
(`random_vae`) and is printed beside the times; `--texture` makes it smoother or rougher.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import av
import torch

from turbowan.benchmarks import loading, random_vae, released_files, synthetic
from turbowan.benchmarks.prompt_stages import DECODER, IMAGE_DECODER, SAMPLER, Mark, stage_seconds
from turbowan.benchmarks.released_files import CHECKPOINT, VAE
from turbowan.benchmarks.request import Size, size_argument
from turbowan.benchmarks.timing import GIB
from turbowan.turbo_core.config import WanConfig

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO / "tests"))

from host import video  # noqa: E402
from host.client import ComfyClient, Run  # noqa: E402
from host.crowded import crowded_gpu  # noqa: E402
from host.server import ComfyProcess, default_packs  # noqa: E402
from host.workflow import Prompt, nodes_of, shrink_workflow  # noqa: E402

WORKFLOW = REPO / "workflows" / "api" / "TurboWan_T2V.json"
LOADER = "TurboLoader"
TINY = WanConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=2, has_proj_l=True)
MODELS = {"tiny": TINY} | {name: synthetic.MODELS[name] for name in ("1.3b", "14b")}
VAE_WIDTHS = {"tiny": 8, "1.3b": 96, "14b": 96}
FPS = 16
RELOADED, IMAGES = "reloaded", "images"  # passes that are not like the others
PROMPT_TIMEOUT = 900
SHOWN = GIB // 10  # nodes whose peak of GPU memory is smaller are left out


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    comfy: Path
    python: Path
    model: str
    size: Size
    steps: int
    cpu: bool
    flags: tuple[str, ...]
    uncached: bool = False
    left: float | None = None
    """GiB of GPU memory that another process leaves free; None where there is no other."""
    texture: float = random_vae.TEXTURE


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One prompt: seconds by stage, bits a second of the MP4; bytes: GPU peaks by node, memory of ComfyUI's process."""

    seconds: dict[str, float]
    bitrate: float
    allocated: dict[str, int]
    reserved: dict[str, int]
    gpu_used: int
    host: dict[str, int]


class Host(ComfyProcess):
    """ComfyUI on its default device, with the caller's environment."""

    def __init__(self, plan: Plan, base: Path) -> None:
        frontend = base / "frontend"
        frontend.mkdir(parents=True)
        super().__init__(
            plan.comfy,
            plan.python,
            base,
            flags=("--front-end-root", str(frontend), *plan.flags),
            packs=default_packs() | {"host-observer": REPO / "benchmarks" / "host_observer"},
            device="cpu" if plan.cpu else "cuda",
        )

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def memory(self) -> dict[str, int]:
        """Peak and present resident memory; the latter's anonymous part is not backed by files."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = dict(re.findall(r"^(VmHWM|VmRSS|RssAnon):\s+(\d+) kB", status, re.MULTILINE))
        return {name: int(value) * 1024 for name, value in found.items()}


def workflow(plan: Plan, seed: int) -> Prompt:
    """The shipped graph with our files, a random conditioning and this seed; size and steps only where they differ."""
    shipped = json.loads(WORKFLOW.read_text())
    (loader,), (sampler,), (vae,) = (nodes_of(shipped, name) for name in (LOADER, SAMPLER, "VAELoader"))
    files = {shipped[loader]["inputs"]["file"]: CHECKPOINT, shipped[vae]["inputs"]["vae_name"]: VAE}
    sizes = dict(zip(("width", "height", "length"), plan.size, strict=True))
    prompt = shrink_workflow(shipped, files=files, sizes=sizes)
    prompt[sampler]["inputs"] |= {"seed": seed, "steps": plan.steps}
    return prompt


def through_images(prompt: Prompt) -> Prompt:
    """The prompt with images between decode and MP4, as stock nodes have them."""
    (decoder,), (save,) = (nodes_of(prompt, name) for name in (DECODER, "SaveVideo"))
    inputs = prompt[decoder]["inputs"]
    images = {"class_type": IMAGE_DECODER, "inputs": {name: inputs[name] for name in ("samples", "vae")}}
    video = {"class_type": "CreateVideo", "inputs": {"images": ["images", 0], "fps": inputs["fps"]}}
    kept = {node: item for node, item in prompt.items() if node not in (decoder, save)}
    saved = prompt[save] | {"inputs": prompt[save]["inputs"] | {"video": ["video", 0]}}
    return kept | {"images": images, "video": video, save: saved}


@contextmanager
def gpu_memory_in_use() -> Iterator[list[int]]:
    """A list that holds, at the end, the largest use of the first GPU by all processes as nvidia-smi reports it."""
    peak = [0]
    if shutil.which("nvidia-smi") is None:
        yield peak
        return
    command = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def read() -> None:
        for line in process.stdout:
            peak[0] = max(peak[0], int(line) * 2**20)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield peak
    finally:
        process.terminate()
        process.wait()
        reader.join()


def timed_run(client: ComfyClient, prompt: Prompt) -> tuple[Run, dict[str, float]]:
    """The run, and its seconds by stage."""
    marks: list[Mark] = []
    run = client.run(prompt, timeout=PROMPT_TIMEOUT, on_event=lambda event: marks.append((time.perf_counter(), event)))
    return run, stage_seconds(marks, {node: item["class_type"] for node, item in prompt.items()})


def check_video(client: ComfyClient, run: Run, prompt: Prompt, plan: Plan) -> bytes:
    """The MP4; SystemExit unless there is one with the size, length and rate that were asked for, and a picture."""
    if not run.ok:
        raise SystemExit(f"the prompt must succeed: {run.ending} {run.error}")
    saved = run.outputs[nodes_of(prompt, "SaveVideo")[0]]["images"][0]
    data = client.view(saved["filename"], saved["subfolder"])
    width, height, frames = plan.size
    expected = video.Video(width=width, height=height, frames=frames, fps=FPS)
    found = video.decode(data)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        first = torch.from_numpy(next(container.decode(stream)).to_ndarray(format="rgb24")).float()
        codec = stream.codec_context.name
    print(f"{saved['filename']}: {len(data) / 2**20:.1f} MiB, {codec}, {found}", flush=True)
    if not saved["filename"].endswith(".mp4") or found != expected or first.std() < 1:
        raise SystemExit(f"the video must be {expected} and show something")
    return data


def measure(host: Host, client: ComfyClient, prompt: Prompt, plan: Plan) -> tuple[Figures, bytes]:
    """One prompt's figures and its MP4."""
    with gpu_memory_in_use() as used:
        run, seconds = timed_run(client, prompt)
    data = check_video(client, run, prompt, plan)
    peaks = [(prompt[item["node"]]["class_type"], item) for item in client.get("/turbowan_bench/memory")]
    peaks = [(name, item) for name, item in peaks if item["allocated"] > SHOWN]
    figures = Figures(
        seconds=seconds,
        bitrate=8 * len(data) * FPS / plan.size[2],
        allocated={name: item["allocated"] for name, item in peaks},
        reserved={name: item["reserved"] for name, item in peaks},
        gpu_used=used[0],
        host=host.memory(),
    )
    return figures, data


def print_table(runs: dict[str, Figures]) -> None:
    print(f"\n{'':36s}" + "".join(f"{name:>12s}" for name in runs))
    _print_rows("s", [figures.seconds for figures in runs.values()], 1)
    _print_rows("Mbit/s", [{"MP4": figures.bitrate} for figures in runs.values()], 1e6)
    _print_rows("GiB allocated", [figures.allocated for figures in runs.values()], GIB)
    _print_rows("GiB reserved", [figures.reserved for figures in runs.values()], GIB)
    _print_rows("GiB", [{"GPU in use (nvidia-smi)": figures.gpu_used} | figures.host for figures in runs.values()], GIB)


def _print_rows(unit: str, columns: list[dict[str, float]], scale: float) -> None:
    for name in dict.fromkeys(name for column in columns for name in column):
        values = (f"{column[name] / scale:12.3f}" if name in column else f"{'–':>12s}" for column in columns)
        print(f"{name + ', ' + unit:36s}" + "".join(values))


def run_prompts(plan: Plan, base: Path, passes: Sequence[str]) -> Iterator[tuple[str, Figures, bytes]]:
    """One prompt for each of `passes`, with another seed each time: its figures and its MP4.

    The first is cold; before one that is called `RELOADED` the host is told to unload its models; one that is called
    `IMAGES`, with or without more behind it, goes `through_images`.
    """
    started = time.perf_counter()
    device = torch.device("cpu" if plan.cpu else "cuda")
    checkpoint = released_files.write(
        base / "models", MODELS[plan.model], VAE_WIDTHS[plan.model], device, texture=plan.texture
    )
    size = checkpoint.stat().st_size
    written = time.perf_counter()
    print(f"checkpoint {size / GIB:.2f} GiB and VAE written in {written - started:.1f} s", flush=True)
    if plan.uncached:
        loading.forget(checkpoint)
    others = nullcontext() if plan.left is None else crowded_gpu(plan.left)
    with others, Host(plan, base) as host:
        print(f"ComfyUI answers after {time.perf_counter() - written:.1f} s", flush=True)
        client = ComfyClient(host.url)
        for seed, name in enumerate(passes):
            if name == RELOADED:
                client.post("/free", {"unload_models": True, "free_memory": False})
            prompt = workflow(plan, seed)
            yield name, *measure(host, client, through_images(prompt) if name.startswith(IMAGES) else prompt, plan)


def parse() -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="the interpreter that runs it")
    parser.add_argument("--model", choices=MODELS, default="1.3b")
    parser.add_argument("--size", type=size_argument, default="832x480x81", help="width x height x frames")
    parser.add_argument("--steps", type=int, choices=range(1, 5), default=4)
    parser.add_argument(
        "--texture", type=float, default=random_vae.TEXTURE, help="of the clip: less is smoother, easier to encode"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the host's log and the last MP4")
    parser.add_argument("--flag", action="append", default=[], help="a start option of ComfyUI, as --flag=--lowvram")
    parser.add_argument(
        "--uncached", action="store_true", help="the model file is not in the page cache when it starts"
    )
    parser.add_argument("--left", type=float, help="GiB of GPU memory that another process leaves free")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with the tiny model at 160x96x9")
    arguments = parser.parse_args()
    plan = Plan(
        comfy=arguments.comfy.resolve(), python=arguments.python, model=arguments.model, size=arguments.size,
        steps=arguments.steps, cpu=False, flags=tuple(arguments.flag), uncached=arguments.uncached,
        left=arguments.left, texture=arguments.texture,
    )  # fmt: skip
    if arguments.dry_run:
        plan = dataclasses.replace(plan, model="tiny", size=(160, 96, 9), cpu=True)
    return plan, arguments.keep


def main() -> None:
    plan, keep = parse()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    device = "CPU" if plan.cpu else torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, {plan.model}, {plan.size}, {plan.steps} steps", flush=True)
    runs: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        try:
            for name, figures, data in run_prompts(plan, base, ("cold", "warm", RELOADED, IMAGES)):
                runs[name] = figures
                if keep is not None:
                    (keep / "host_run.mp4").write_bytes(data)
        finally:
            print_table(runs)
            log = base / "comfyui.log"
            if keep is not None and log.exists():
                shutil.copy(log, keep)


if __name__ == "__main__":
    main()
