"""TurboDoctor in the host: it knows ComfyUI's version, device and folders, and looks anew each time."""

from __future__ import annotations

from pathlib import Path

from host import models
from host.client import ComfyClient
from host.graphs import finished
from host.server import ComfyProcess
from host.workflow import Graph


def test_the_report_is_shown_and_given_on(client: ComfyClient, host: ComfyProcess, checkout: Path) -> None:
    graph = Graph()
    doctor = graph.add("TurboDoctor")
    length = graph.add("StringLength", string=doctor)
    shown = graph.add("PreviewAny", source=length)
    run = finished(client, graph)
    (text,) = run.outputs[doctor[0]]["text"]
    assert run.texts[doctor[0]] == text
    assert list(run.outputs[shown[0]]["text"]) == [str(len(text))]
    version = (checkout / "comfyui_version.py").read_text().split('"')[-2]
    assert f"ComfyUI {version}, files in {host.base}" in text
    assert "ComfyUI uses cpu" in text
    assert "on cpu every operation takes the torch path" in text
    assert f"{models.T2V_QUANT}: Wan T2V (dim 256, 2 blocks), block-int8, SLA-trained" in text
    assert f"{models.I2V_HIGH}: Wan I2V (dim 256, 2 blocks), unquantized, SLA-trained, high-noise expert" in text
    assert f"{models.VAE}: Wan 2.1 VAE (width 8)" in text
    assert "no umT5 text encoder was found" in text
    assert "could not be examined" not in text
    assert "no answer within" not in text

    assert doctor[0] in finished(client, graph).executed()
