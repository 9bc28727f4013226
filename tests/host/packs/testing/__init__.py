"""Nodes for tests only: inputs without large models, probes that report JSON in the UI, hooks that count."""

from . import hooks, memory, probes, sources

NODE_CLASS_MAPPINGS = {cls.__name__: cls for module in (sources, probes, hooks, memory) for cls in module.NODES}
