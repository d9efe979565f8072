"""Compile every kernel without a GPU and read what the machine code shows.

    python -m prunebench_kernels.ahead --table bench/compiled.csv

compiles each CompileCase of each `*_triton` module for sm_80 and sm_90, prints what breaks a rule of
`violations`, and replaces the rows of the installed Triton version in the table. Registers come from the
cuobjdump, spills and instructions from the nvdisasm that Triton carries.

Kernels must be real here, so TRITON_INTERPRET must be unset before Triton is imported; the command removes it.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import multiprocessing
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.machine_code import code_of, count_instructions, disassemble, resource_usage

CAPABILITIES = (80, 90)
SHARED_MEMORY_LIMITS = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes a block may use (CUDA programming guide, technical specifications per compute capability)."""
EXPECTATIONS = frozenset({"tensor-cores", "vector-loads"})

_BATCH = 8
"""Cases that a worker compiles before it disassembles them."""


@dataclass(frozen=True)
class CompiledFigures:
    """What one case became for one compute capability: sizes in bytes, instructions counted in the SASS.

    `vector_loads` are 128-bit loads from global memory (LDG, asynchronous copies LDGSTS) and bulk tensor loads
    (UTMALDG); `wgmma_depth` is the largest number of WGMMA groups left in flight by a wait (0: every one waits).
    """

    case: str
    kernel: str
    capability: int
    triton: str
    registers: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int
    hgmma: int
    hmma: int
    imma: int
    vector_loads: int
    wgmma_depth: int

    @property
    def key(self) -> tuple[str, str, int]:
        return (self.triton, self.case, self.capability)


def triton_modules(package: str = "prunebench_kernels") -> list[str]:
    """Names of the modules of the package whose name ends in `_triton`, found without importing them."""
    root = importlib.import_module(package)
    names = (info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))
    return sorted(name for name in names if name.endswith("_triton"))


def all_cases(modules: Iterable[str] | None = None) -> dict[str, CompileCase]:
    """Every CompileCase of the modules (default: the package's), by name. Raises ValueError on a name used twice."""
    cases: dict[str, CompileCase] = {}
    for name in triton_modules() if modules is None else modules:
        for case in cases_of(importlib.import_module(name)):
            if case.name in cases:
                raise ValueError(f"{name}: COMPILE_CASES repeats the name {case.name!r}")
            cases[case.name] = case
    return cases


def cases_of(module: ModuleType) -> tuple[CompileCase, ...]:
    """The module's COMPILE_CASES. Raises ValueError if there are none or one expects an unknown thing."""
    cases = tuple(getattr(module, "COMPILE_CASES", ()))
    if not cases:
        raise ValueError(f"{module.__name__}: has no COMPILE_CASES")
    for case in cases:
        if unknown := set(case.expects) - EXPECTATIONS:
            raise ValueError(f"{case.name}: expects unknown {sorted(unknown)}; want {sorted(EXPECTATIONS)}")
    return cases


def kernel_name(case: CompileCase) -> str:
    """The name of the kernel's Python function, compiled or interpreted."""
    return case.kernel.fn.__name__


def compile_case(case: CompileCase, capability: int) -> CompiledFigures:
    """Compile one case for sm_`capability` and read its figures. Raises RuntimeError in the interpreter."""
    return read_figures([_compiled(case, capability)], capability)[0]


@dataclass(frozen=True)
class _Compiled:
    """A case and its machine code, not yet read."""

    case: str
    kernel: str
    triton: str
    shared_bytes: int
    cubin: bytes


def _compiled(case: CompileCase, capability: int) -> _Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile")
    names = list(case.kernel.arg_names)
    if set(case.signature) != set(names):
        odd = sorted(set(case.signature) ^ set(names))
        raise ValueError(f"{case.name}: the signature and the kernel's arguments differ in {odd}")
    source = ASTSource(
        fn=case.kernel,
        signature={name: case.signature[name] for name in names},
        constexprs=dict(case.constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in case.divisible_by_16},
    )
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "enable_fp_fusion": case.fp_fusion,
    }
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _Compiled(
        case.name, kernel_name(case), triton.__version__, int(made.metadata.shared), made.asm["cubin"]
    )


def read_figures(compiled: Sequence[_Compiled], capability: int) -> list[CompiledFigures]:
    """The figures of several compiled cases, whose code is disassembled at once.

    nvdisasm takes 0.18 s to start, whatever it reads: half the time of a case, were it started for each.
    """
    codes = [code_of(made.cubin) for made in compiled]
    listings = disassemble(codes, capability)
    return [
        CompiledFigures(
            case=made.case,
            kernel=made.kernel,
            capability=capability,
            triton=made.triton,
            shared_bytes=made.shared_bytes,
            **resource_usage(made.cubin),
            **count_instructions(listing),
        )
        for made, listing in zip(compiled, listings)
    ]


def violations(case: CompileCase, figures: CompiledFigures) -> list[str]:
    """What the machine code must not show, or lacks although the case expects it; empty if all is well."""
    where = f"{figures.case} on sm_{figures.capability}"
    broken = []
    if figures.spill_stores or figures.spill_loads:
        broken.append(f"{where}: spills ({figures.spill_stores} stores, {figures.spill_loads} loads)")
    limit = SHARED_MEMORY_LIMITS[figures.capability]
    if figures.shared_bytes > limit:
        broken.append(f"{where}: {figures.shared_bytes} bytes of shared memory, the limit is {limit}")
    warpgroup = figures.capability >= 90 and case.num_warps >= 4
    matrix = figures.hgmma + figures.imma + (0 if warpgroup else figures.hmma)
    if "tensor-cores" in case.expects and not matrix:
        broken.append(f"{where}: no {'HGMMA' if warpgroup else 'HMMA'} instruction")
    if "vector-loads" in case.expects and not figures.vector_loads:
        broken.append(f"{where}: no 128-bit load from global memory")
    return broken


def _compile_batch(
    request: tuple[tuple[str, ...] | None, tuple[str, ...], int],
) -> list[CompiledFigures | str]:
    modules, names, capability = request
    cases = all_cases(modules)
    compiled: dict[str, _Compiled] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            compiled[name] = _compiled(cases[name], capability)
        except Exception as error:  # a case that does not compile must not hide the others
            failed[name] = f"{name} on sm_{capability}: {type(error).__name__}: {error}"
    figures = dict(zip(compiled, read_figures(list(compiled.values()), capability) if compiled else ()))
    return [failed[name] if name in failed else figures[name] for name in names]


def compile_all(
    modules: Sequence[str] | None = None, workers: int | None = None
) -> Iterator[CompiledFigures | str]:
    """The figures of every case and capability; the message in place of a case that does not compile."""
    chosen = None if modules is None else tuple(modules)
    names = list(all_cases(chosen))
    # Neighbours are alike: dealt out in turn, batches take about the same time.
    count = max(1, -(-len(names) // _BATCH))
    batches = [tuple(names[start::count]) for start in range(count)]
    requests = [(chosen, batch, capability) for capability in CAPABILITIES for batch in batches]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        for found in pool.map(_compile_batch, requests):
            yield from found


def read_table(path: Path) -> list[CompiledFigures]:
    """The rows of a table written by `write_table`; empty if there is no such file."""
    if not path.exists():
        return []
    parse: dict[str, Callable[[str], str | int]] = {
        field.name: int if field.type == "int" else str for field in fields(CompiledFigures)
    }
    with path.open(newline="") as file:
        return [CompiledFigures(**{k: parse[k](v) for k, v in row.items()}) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def write_table(path: Path, rows: Iterable[CompiledFigures]) -> None:
    """Write the rows, sorted by Triton version, case and capability."""
    with path.open("w", newline="") as file:
        names = [field.name for field in fields(CompiledFigures)]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.key))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print what breaks a rule, write the table. Exit code 1 if a case fails or breaks a rule."""
    parser = argparse.ArgumentParser(
        prog="prunebench_kernels.ahead", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--table", type=Path, help="CSV whose rows of the installed Triton are replaced")
    parser.add_argument("--modules", nargs="+", help="only these modules (default: every *_triton module)")
    parser.add_argument("--workers", type=int, help="processes (default: the number of processors)")
    options = parser.parse_args(arguments)
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET"):
        raise SystemExit("Triton was already imported with TRITON_INTERPRET set; run this as a command")
    os.environ.pop("TRITON_INTERPRET", None)
    start = time.perf_counter()
    cases = all_cases(options.modules)
    results = list(compile_all(options.modules, options.workers))
    rows = [result for result in results if isinstance(result, CompiledFigures)]
    broken = [result for result in results if isinstance(result, str)]
    broken += [line for row in rows for line in violations(cases[row.case], row)]
    if options.table is not None:
        versions = {row.triton for row in rows}
        kept = [row for row in read_table(options.table) if row.triton not in versions]
        write_table(options.table, [*kept, *rows])
    print("\n".join(broken))
    print(f"{len(rows)} compilations in {time.perf_counter() - start:.0f} s, {len(broken)} broken rules")
    return int(bool(broken))


if __name__ == "__main__":
    # The classes must be those of the importable module: the worker processes send them back.
    from prunebench_kernels import ahead

    sys.exit(ahead.main())
