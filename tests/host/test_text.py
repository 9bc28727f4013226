"""Our umT5 against ComfyUI's own, on one tiny file in each of its precisions.

ComfyUI gets the prompts as `--server` sends them, so that its parentheses weigh nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import tiny_umt5
import torch
from safetensors.torch import load_file, save_file
from tolerances import SAME_MATHS_FP32, relative_error

from turbowan.turbo_core.server_maker import literal
from turbowan.turbo_core.text_encoder import TextEncoder

pytest.importorskip("transformers")
pytestmark = pytest.mark.host

PROMPTS = [
    "a red ball bouncing to the right", "two purple circles, large: 50% faster!  Twice.", "",
    "a (red:1.3) ball ((in) the middle", "a \\(b) c\\",
]  # fmt: skip
SHAPE = {"d_model": 64, "d_ff": 96, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": 128}
SCRIPT = Path(__file__).with_name("text_reference.py")


@pytest.mark.parametrize("scaled", [False, True], ids=["fp16", "scaled fp8"])
def test_conditioning_is_comfyuis(checkout: Path, host_python: Path, tmp_path: Path, scaled: bool) -> None:
    file, out = tmp_path / "umt5.safetensors", tmp_path / "states.safetensors"
    save_file(tiny_umt5.tiny_umt5_tensors(scaled=scaled), file)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    command = [host_python, SCRIPT, file, out, json.dumps(SHAPE), *map(literal, PROMPTS)]
    subprocess.run(command, cwd=checkout, env=environment, check=True, timeout=120)
    theirs = load_file(out)
    ours = TextEncoder.open(file).encode(PROMPTS, torch.device("cpu"))
    for index, states in enumerate(ours):
        assert relative_error(states, theirs[str(index)]) < SAME_MATHS_FP32
