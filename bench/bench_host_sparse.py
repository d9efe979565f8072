"""The host's time for one layer of sparse inference: what Python does before and after the launch.

    python bench/bench_host_sparse.py [--repeats 9] [--json]

No GPU is needed: kernels go through Triton's real launch path under a stand-in, compiled for sm_90, and the launch does
nothing; on the dense side the library's convolution does nothing. So it is the cost around a layer's work, of both
alike, without the C launch (3 to 4 us on either side). Processor time, the least of several rounds taken in turns;
compare times of one run only. Before calls were resolved once, a layer of `block` took 68 us and one of `direct` 71
beside 4.5 of the dense module (Triton 3.6; 63, 70 and 4.4 with Triton 3.9).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from unittest import mock

import torch
import triton
from prunebench_kernels import layouts
from prunebench_kernels.layouts import Geometry, arrange, empty, format_of, pack
from prunebench_kernels.sparse_conv import SparseConv2d, sparse_conv2d
from standin import stand_in
from torch import Tensor

GEOMETRY = Geometry(64, 64, padding=(1, 1))
SHAPE = (8, 64, 4, 4)
CALLS = 400


def calls() -> dict[str, Callable[[], Tensor]]:
    """Calls of one layer of 64 channels with bias and ReLU in each layout, as a module and as the function."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(GEOMETRY.weight_shape, generator=generator)
    weight *= torch.rand(GEOMETRY.weight_shape, generator=generator) < 0.01
    bias = torch.zeros(64, dtype=torch.bfloat16)
    found: dict[str, Callable[[], Tensor]] = {}
    for layout in ("dense", "block", "direct"):
        packed = pack(weight.bfloat16(), layout, geometry=GEOMETRY)
        x = arrange(torch.zeros(SHAPE, dtype=torch.bfloat16), format_of(layout))
        residual = empty(SHAPE, format_of(layout), x)
        module = SparseConv2d(packed, bias, relu=True, backend="triton")
        found[f"{layout}, module"] = lambda module=module, x=x: module(x)
        found[f"{layout}, module with residual"] = lambda m=module, x=x, r=residual: m(x, r)
        if layout != "dense":
            found[f"{layout}, function"] = lambda p=packed, x=x: sparse_conv2d(
                x, p, bias, relu=True, backend="triton"
            )
    return found


def host_times(named: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Microseconds of processor time a call: the least of `repeats` rounds."""
    best = dict.fromkeys(named, float("inf"))
    for call in named.values():
        for _ in range(20):
            call()
    for _ in range(repeats):
        for name, call in named.items():
            start = time.process_time()
            for _ in range(CALLS):
                call()
            best[name] = min(best[name], (time.process_time() - start) / CALLS * 1e6)
    return best


_Y = arrange(torch.zeros(SHAPE, dtype=torch.bfloat16), "channels_last")


def _nothing(*arguments: object) -> Tensor:
    return _Y


@torch.no_grad()
def measure(repeats: int) -> dict[str, float]:
    """Host times of all calls, with library convolutions that do nothing."""
    torch.set_num_threads(1)
    with stand_in(90), mock.patch.object(layouts.functional, "conv2d", _nothing):
        return host_times(calls(), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="rounds of which the fastest counts")
    parser.add_argument("--json", action="store_true", help="print the times as JSON")
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"host time of a layer, torch {torch.__version__}, Triton {triton.__version__}")
    for name, microseconds in found.items():
        dense = found["dense, module with residual" if "residual" in name else "dense, module"]
        print(f"{name:32s} {microseconds:7.1f} us  {microseconds / dense:5.2f}x of the dense module")


if __name__ == "__main__":
    main()
