"""TurboPromptCache: an encoded prompt from disk; the text encoder is loaded for new prompts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .choices import CATEGORY

if TYPE_CHECKING:
    from comfy.sd import CLIP


UNCONNECTED = object()


class TurboPromptCache(io.ComfyNode):
    """`clip` is lazy: its loader runs only where the prompt is not on disk."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboPromptCache",
            display_name="TurboWan Prompt Cache",
            category=CATEGORY,
            description="Encodes a prompt as CLIPTextEncode does and keeps it on disk, so that a known prompt never "
            "loads the text encoder.",
            inputs=[
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    lazy=True,
                    tooltip="From Load CLIP (umT5-XXL, type wan). Without it, the prompt must be in a prompt book: "
                    "those of the demo model are shipped.",
                ),
                io.Int.Input(
                    "disk_mb",
                    default=1024,
                    min=1,
                    max=1 << 20,
                    optional=True,
                    tooltip="How many megabytes all kept prompts may take; those unused for longest leave first.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            outputs=[io.Conditioning.Output(tooltip="The same as CLIPTextEncode's.")],
        )

    @classmethod
    def fingerprint_inputs(cls, text: str | None, disk_mb: int = 1024, clip: object = UNCONNECTED) -> list[object]:
        """Of the prompt books, where they serve; the host hands over None for an input that is connected."""
        from ._prompts import book_stamps

        return book_stamps() if clip is UNCONNECTED else []

    @classmethod
    def check_lazy_status(cls, text: str, disk_mb: int = 1024, clip: CLIP | None = None) -> list[str]:
        from ._prompts import clip_link, find_entry

        link = clip_link(cls.hidden)
        return [] if link is None or find_entry(text, link, cls.hidden, disk_mb) else ["clip"]

    @classmethod
    def execute(cls, text: str, disk_mb: int = 1024, clip: CLIP | None = None) -> io.NodeOutput:
        from ._host import show_on_node
        from ._prompts import clip_link, from_book, from_cache

        link = clip_link(cls.hidden)
        if link is None:
            conditioning, said = from_book(text)
        else:
            conditioning, said = from_cache(text, link, cls.hidden, disk_mb, clip)
        show_on_node(said, cls.hidden.unique_id)
        return io.NodeOutput(conditioning)
