"""Graph pieces that the host tests share: the pack's nodes and the stock ones around them, at a tiny size.

160x96, 9 frames: latents of 3x12x20, 180 tokens; for SLA that is 2 query blocks and 3 key blocks with tails.
"""

from __future__ import annotations

from typing import Any

from host import models
from host.client import ComfyClient, Run
from host.workflow import Graph, Link, output

WIDTH, HEIGHT, LENGTH = 160, 96, 9
T2V_TIMESTEPS = [988, 932, 852, 608]  # t * 1000 in bf16
I2V_TIMESTEPS = [996, 932, 852, 608]


class TinyGraph(Graph):
    """A graph whose pieces have the tests' usual values unless told otherwise."""

    def load(self, file: str = models.T2V, **settings: Any) -> Link:
        settings = {"attention": "auto", "topk": 0.4, "precision": "auto"} | settings
        return self.add("TurboLoader", file=file, **settings)

    def text(self, seed: int = 1, **spoiled: Any) -> Link:
        usual = {"tokens": 512, "width": 4096, "batch": 1, "words": 40, "fault": "none"}
        return self.add("TestConditioning", seed=seed, **(usual | spoiled))

    def empty(self, batch: int = 1, width: int = WIDTH, height: int = HEIGHT, length: int = LENGTH) -> Link:
        size = {"width": width, "height": height, "length": length}
        return self.add("EmptyHunyuanLatentVideo", **size, batch_size=batch)

    def t2v(self, model: Link, text: Link | None = None, latent: Link | None = None, **settings: Any) -> Link:
        settings = {"seed": 7, "steps": 2, "sigma_max": 80.0, "noise": "comfy"} | settings
        conditioning, latent = text or self.text(), latent or self.empty()
        return self.add("TurboT2VSampler", model=model, conditioning=conditioning, latent=latent, **settings)

    def i2v(self, high: Link, low: Link, conditioning: Link, latent: Link, **settings: Any) -> Link:
        usual = {"seed": 7, "steps": 4, "sigma_max": 200.0, "boundary": 0.9, "sampler": "ode", "noise": "comfy"}
        inputs = {"model_high": high, "model_low": low, "conditioning": conditioning, "latent": latent}
        return self.add("TurboI2VSampler", **inputs, **(usual | settings))

    def ksampler(self, model: Link, text: Link, latent: Link, **settings: Any) -> Link:
        usual = {
            "seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        }  # fmt: skip
        inputs = {"model": model, "positive": text, "negative": text, "latent_image": latent}
        return self.add("KSampler", **inputs, **(usual | settings))

    def custom(
        self, model: Link, text: Link, latent: Link, *, seed: int = 7, steps: int = 2, sampler: str = "sde"
    ) -> Link:
        """SamplerCustomAdvanced with the pack's SAMPLER and SIGMAS."""
        return self.add(
            "SamplerCustomAdvanced",
            noise=self.add("RandomNoise", noise_seed=seed),
            guider=self.add("BasicGuider", model=model, conditioning=text),
            sampler=self.add("TurboSamplerSelect", sampler=sampler),
            sigmas=self.add("TurboScheduler", steps=steps, sigma_max=80.0),
            latent_image=latent,
        )

    def vae(self, file: str = models.VAE) -> Link:
        return self.add("VAELoader", vae_name=file)

    def stock_i2v(
        self, text: Link, batch: int = 1, *, length: int = LENGTH, vae: Link | None = None
    ) -> tuple[Link, Link]:
        """Conditioning and latent of the host's own WanImageToVideo."""
        image = self.add("TestImage", seed=5, width=WIDTH, height=HEIGHT, batch=1)
        made = self.add(
            "WanImageToVideo", positive=text, negative=text, vae=vae or self.vae(), width=WIDTH, height=HEIGHT,
            length=length, batch_size=batch, start_image=image,
        )  # fmt: skip
        return made, output(made, 2)

    def own_i2v(
        self,
        text: Link,
        batch: int = 1,
        *,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        length: int = LENGTH,
        vae: Link | None = None,
        **image: int,
    ) -> tuple[Link, Link]:
        """Conditioning and latent of TurboImageToVideo, of the same image unless told otherwise."""
        shown = self.add("TestImage", **({"seed": 5, "width": WIDTH, "height": HEIGHT, "batch": 1} | image))
        made = self.add(
            "TurboImageToVideo", conditioning=text, vae=vae or self.vae(), image=shown, resolution="custom",
            aspect="adaptive", width=size[0], height=size[1], length=length, batch_size=batch,
        )  # fmt: skip
        return made, output(made, 1)

    def probe(self, samples: Link) -> str:
        """Id of the node to ask ``run.report`` for."""
        return self.add("TestLatentProbe", samples=samples)[0]

    def compare(self, a: Link, b: Link) -> str:
        return self.add("TestCompare", a=a, b=b)[0]

    def hook_report(self, samples: Link, label: str) -> str:
        return self.add("TestHookReport", samples=samples, label=label)[0]


def finished(client: ComfyClient, graph: Graph) -> Run:
    """Run the graph, which must succeed."""
    run = client.run(graph.prompt)
    assert run.ok, run.error
    return run
