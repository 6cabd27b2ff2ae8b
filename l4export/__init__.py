"""l4export compiles Llama 4 checkpoints into inference engines and proves that they compute what PyTorch computes.

    import l4export

    l4export.build("checkpoint", "engine")
    engine = l4export.load("engine")
    report = l4export.check_parity("engine", "checkpoint")

The public names are imported when they are first used, so `import l4export` alone loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l4export._version import __version__

__all__ = [
    "BuildOptions",
    "Sampling",
    "__version__",
    "bench",
    "build",
    "check_layers",
    "check_parity",
    "inspect",
    "load",
    "measure_quality",
    "plan",
]

if TYPE_CHECKING:
    from l4export.benchmark.measure import bench
    from l4export.compiler.build import build
    from l4export.compiler.options import BuildOptions
    from l4export.inspection.facts import inspect
    from l4export.parity.by_layer import check_layers
    from l4export.parity.whole_model import check_parity
    from l4export.quality.measure import measure_quality
    from l4export.runtimes import load
    from l4export.runtimes.sampling.settings import Sampling
    from l4export.sizing.memory_plan import plan
else:
    from importlib import import_module

    _HOMES = {
        "BuildOptions": "compiler.options",
        "Sampling": "runtimes.sampling.settings",
        "bench": "benchmark.measure",
        "build": "compiler.build",
        "check_layers": "parity.by_layer",
        "check_parity": "parity.whole_model",
        "inspect": "inspection.facts",
        "load": "runtimes",
        "measure_quality": "quality.measure",
        "plan": "sizing.memory_plan",
    }

    def __getattr__(name):
        """Import a public name from its home (PEP 562). Type checkers do not see it: they would accept any name."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

    def __dir__():
        """What there is, with the public names that are not imported yet."""
        return [*globals(), *_HOMES]
