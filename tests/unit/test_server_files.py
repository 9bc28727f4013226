"""Files among those that a server lists, with either separator; tests/host/test_server_commands asks a real one."""

from __future__ import annotations

from typing import Any

import pytest

from turbowan.turbo_core.catalogue import RELEASES, TEXT_ENCODER, VAE
from turbowan.turbo_core.errors import ServerError
from turbowan.turbo_core.expert import NetworkSettings
from turbowan.turbo_core.model_choice import Named, choose
from turbowan.turbo_core.parameters import parameters
from turbowan.turbo_core.request import Request
from turbowan.turbo_core.server_files import MENUS, locate_on_server

RELEASE = RELEASES["t2v-14b-480p"]
NETWORK = RELEASE.quantized[0].name


class Server:
    """What `locate_on_server` asks of a client."""

    url = "http://server:8188"

    def __init__(self, *networks: str, vaes: tuple[str, ...] = (VAE.name,)) -> None:
        self.files = {"TurboLoader": networks, "CLIPLoader": (TEXT_ENCODER.name,), "VAELoader": vaes}

    def node(self, kind: str) -> dict[str, Any]:
        return {"input": {"required": {MENUS[kind]: [list(self.files[kind])]}}}


@pytest.mark.parametrize("model", [NETWORK, f"new/{NETWORK}", f"new\\{NETWORK}"])
@pytest.mark.parametrize("listed", [f"new/{NETWORK}", f"new\\{NETWORK}"])
def test_either_separator(model: str, listed: str) -> None:
    choice = locate_on_server(Server("other.pth", listed), choose(model, Named(), image=False, server=True))
    assert choice.network == listed
    told = parameters(Request(prompt="a", size=(64, 48)), choice, NetworkSettings())
    assert told["files"] == [NETWORK, VAE.name, TEXT_ENCODER.name]


@pytest.mark.parametrize(
    ("named", "server", "remedy"),
    [
        (Named(vae="mine.safetensors"), Server(NETWORK), "; name another with"),
        (Named(low="mine.pth"), Server(NETWORK), "; name another with"),
        (Named(), Server(), f"; run `{RELEASE.command()}` there, or name another with"),
        (Named(low="mine.pth"), Server(), f"; run `{RELEASE.command()}` there, or name another with"),
        (Named(), Server(NETWORK, vaes=()), "; run `turbowan download vae` there, or name another with"),
    ],
)
def test_a_command_is_named_only_for_what_it_brings(named: Named, server: Server, remedy: str) -> None:
    choice = choose(RELEASE.name, named, image=False, server=True)
    with pytest.raises(ServerError) as refused:
        locate_on_server(server, choice)
    assert remedy in str(refused.value)
