"""What is compiled ahead of time, without a GPU, and what the machine code must then show.

Each `*_triton.py` module lists its kernels x dtypes x configurations as COMPILE_CASES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One kernel with one signature and configuration.

    `signature` maps every argument to its Triton type (`*fp32`, `*bf16`, `i32`, `fp32`, or `constexpr`);
    `constexprs` gives the values of the latter. `divisible_by_16` names pointers and integers that may be
    assumed divisible by 16, as Triton's own launcher would find for aligned tensors. `expects` may hold
    `tensor-cores` (MMA instructions must appear: WGMMA on sm_90, HMMA on sm_80; leave it out for IEEE fp32)
    and `vector-loads` (128-bit global loads or asynchronous copies must appear). `fp_fusion` is what the launch
    function gives as `enable_fp_fusion`: whether a * b + c may become one rounding.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    divisible_by_16: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    expects: frozenset[str] = frozenset()
    fp_fusion: bool = True
