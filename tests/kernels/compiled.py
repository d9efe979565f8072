"""Machine code of kernels as they are called: calls run under a stand-in for a GPU, in a process without interpreter.

A test module lists its calls in a function `calls()`: name -> callable. `figures(module, capability)` runs each under
`standin.stand_in` and returns, by name, the figures of the kernels that it compiled first.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from standin import Figures

CAPABILITIES = (80, 90, 100)
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def figures(module: str, capability: int) -> dict[str, list[Figures]]:
    """By call: the kernels that it compiled, in order. `module` is a test module with a function `calls`."""
    from standin import Figures

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [ROOT, ROOT / "kernels", ROOT / "bench", ROOT / "tests", ROOT / "tests" / "kernels"]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command = [sys.executable, "-W", "ignore", __file__, module, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: [Figures(**values) for values in rows] for name, rows in found.items()}


def check(name: str, rows: list[Figures], capability: int) -> list[str]:
    """What no kernel may show: spills, or more shared memory than the GPU has; empty if all is well."""
    from standin import SHARED_MEMORY_LIMITS

    limit = SHARED_MEMORY_LIMITS[capability]
    broken = [
        f"{name}: {row.name} spills {row.spills} times on sm_{capability}" for row in rows if row.spills
    ]
    broken += [
        f"{name}: {row.name} takes {row.shared_bytes} bytes of shared memory, sm_{capability} has {limit}"
        for row in rows
        if row.shared_bytes > limit
    ]
    return broken


def _main(module: str, capability: int) -> None:
    from standin import figures_of, stand_in

    found = {}
    with stand_in(capability) as seen:
        for name, call in importlib.import_module(module).calls().items():
            before = len(seen.kernels)
            call()
            found[name] = (before, len(seen.kernels))
        rows = figures_of(seen.kernels, capability)
    print(json.dumps({name: [asdict(row) for row in rows[a:b]] for name, (a, b) in found.items()}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
