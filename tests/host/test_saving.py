"""ModelSave: the file, loaded again, gives the latents that the model gave which was saved."""

from __future__ import annotations

import pytest
from host import models
from host.client import ComfyClient
from host.graphs import T2V_TIMESTEPS, TinyGraph, finished
from host.workflow import Link
from tolerances import LORA_STREAMED, MOVED


def _merged(graph: TinyGraph, model: Link, file: str) -> Link:
    other = models.T2V_OTHER_QUANT if file == models.T2V_QUANT else models.T2V_OTHER
    return graph.add("ModelMergeSimple", model1=model, model2=graph.load(other), ratio=0.3)


def _with_lora(graph: TinyGraph, model: Link, file: str) -> Link:
    return graph.add("LoraLoaderModelOnly", model=model, lora_name=models.LORA, strength_model=1.0)


CHANGES = {"merge": _merged, "lora": _with_lora}


def _save(client: ComfyClient, graph: TinyGraph, model: Link, name: str) -> str:
    """Run the graph with a ModelSave; the name under which TurboLoader finds the file."""
    client.free()
    graph.add("ModelSave", model=model, filename_prefix=f"diffusion_models/{name}")
    finished(client, graph)
    client.free()
    return f"{name}_00001_.safetensors"


@pytest.mark.parametrize("place", ["loaded", "streamed"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", [models.T2V, models.T2V_QUANT], ids=["bf16", "int8"])
def test_saved_model_gives_the_same_latents(client: ComfyClient, file: str, change: str, place: str) -> None:
    """To the bit where the weights were loaded; patched int8 weights that are streamed run dense instead."""
    saving = TinyGraph()
    model = saving.load(file)
    if place == "streamed":
        model = saving.add("TestPatcher", model=model, kind="partial", budget=1)
    saved = _save(client, saving, CHANGES[change](saving, model, file), f"{change}-{place}-{file.split('.')[1]}")
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    loaded = graph.load(file)
    changed = graph.t2v(CHANGES[change](graph, loaded, file), text, latent)
    again = graph.t2v(graph.load(saved), text, latent)
    same, moved = graph.compare(again, changed), graph.compare(again, graph.t2v(loaded, text, latent))
    run = finished(client, graph)
    assert run.report(same)["equal"], run.report(same)
    assert run.report(moved)["relative"] > MOVED


@pytest.mark.parametrize("change", CHANGES)
def test_saved_model_is_near_the_streamed_one(client: ComfyClient, change: str) -> None:
    graph = TinyGraph()
    text, latent = graph.text(), graph.empty()
    streamed = graph.add("TestPatcher", model=graph.load(models.T2V_QUANT), kind="partial", budget=1)
    model = CHANGES[change](graph, streamed, models.T2V_QUANT)
    saved = _save(client, graph, model, f"near-{change}")
    near = graph.compare(graph.t2v(graph.load(saved), text, latent), graph.t2v(model, text, latent))
    del graph.prompt[next(node for node, data in graph.prompt.items() if data["class_type"] == "ModelSave")]
    assert finished(client, graph).report(near)["relative"] < LORA_STREAMED


@pytest.mark.parametrize("file", [models.T2V_NATIVE, models.T2V])
def test_saved_model_keeps_its_timesteps(client: ComfyClient, file: str) -> None:
    """TurboDiffusion's files see timesteps rounded to bf16, native ones do not; native names cannot tell them apart."""
    saving = TinyGraph()
    saved = _save(client, saving, saving.load(file, precision="int8"), f"times-{file.split('.')[0]}")
    graph, label = TinyGraph(), f"saved-{file}"
    model = graph.add("TestHook", model=graph.load(saved), kind="wrapper", effect="pass", label=label)
    sampled = graph.t2v(model, steps=4)
    notes = graph.hook_report(sampled, label)
    same = graph.compare(sampled, graph.t2v(graph.load(file, precision="int8"), steps=4))
    run = finished(client, graph)
    times = [time for time, _ in run.report(notes)["notes"]]
    assert len(times) == 4
    assert (times == T2V_TIMESTEPS) == (file == models.T2V)
    assert run.report(same)["equal"]
