"""``python -m turbowan …``; ``python custom_nodes/comfyui-turbowan …`` where it is not pip-installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

PACKAGE = "turbowan"


def _load_package(root: Path) -> None:
    """Make the folder that this file lies in the package ``turbowan``, whatever the folder is called."""
    # Python put the folder itself on the path; there its `nodes` would shadow other modules.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    spec = importlib.util.spec_from_file_location(PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    if not __package__:
        _load_package(Path(__file__).resolve().parent)
    sys.exit(importlib.import_module(f"{__package__ or PACKAGE}.turbo_core.cli").main())
