"""Every kernel compiles without a GPU for sm_80 and sm_90, does not spill, and uses the units it was meant to.

The committed table bench/compiled.csv holds the figures; after a change of a kernel renew it with
`uv run python -m prunebench_kernels.ahead --table bench/compiled.csv`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import triton
from prunebench_kernels.ahead import (
    CAPABILITIES,
    CompiledFigures,
    all_cases,
    cases_of,
    kernel_name,
    read_table,
    triton_modules,
    violations,
    write_table,
)
from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.machine_code import count_instructions

TABLE = Path(__file__).parents[1] / "bench" / "compiled.csv"
FLOATS = frozenset({"fp32", "fp16", "bf16"})

OTHER_DTYPES: dict[tuple[str, str], str] = {}
"""(kernel, argument): why it does not take all three floats, although it takes half precision."""

NO_FLOATS: dict[str, str] = {
    "correlation_finish_kernel": "it reads the float32 sums of covariance_sums_kernel, whatever the outputs' dtype",
}
"""Kernels without an argument in all three floats, and why."""


def run_ahead(table: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own, with the interpreter asked for as pytest has it."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(path or "")}
    command = [sys.executable, "-m", "prunebench_kernels.ahead", "--table", str(table), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], CompiledFigures]:
    """Every case compiled for every capability, once."""
    table = tmp_path_factory.mktemp("ahead") / "compiled.csv"
    done = run_ahead(table)
    rows = {(row.case, row.capability): row for row in read_table(table)}
    assert rows.keys() == {(name, capability) for name in all_cases() for capability in CAPABILITIES}, (
        done.stdout + done.stderr
    )
    return rows


def test_every_case_keeps_the_rules(figures: dict[tuple[str, int], CompiledFigures]) -> None:
    cases = all_cases()
    assert not [line for (name, _), row in figures.items() for line in violations(cases[name], row)]


def test_the_figures_are_those_of_the_committed_table(
    figures: dict[tuple[str, int], CompiledFigures],
) -> None:
    committed = {row.key: row for row in read_table(TABLE)}
    compiled = {row.key: row for row in figures.values()}
    if triton.__version__ not in {version for version, _, _ in committed}:
        pytest.skip(f"{TABLE.name} has no figures of Triton {triton.__version__}; the rules hold")
    expected = {key: row for key, row in committed.items() if key[0] == triton.__version__}
    assert compiled == expected, "renew the table: uv run python -m prunebench_kernels.ahead --table " + str(
        TABLE
    )


def test_every_row_of_the_committed_table_keeps_the_rules() -> None:
    cases = all_cases()
    rows = read_table(TABLE)
    assert {row.case for row in rows} == cases.keys()
    assert not [line for row in rows for line in violations(cases[row.case], row)]


# --- which kernels have cases ------------------------------------------------------------------------------


def is_jit(function: ast.AST) -> bool:
    """Whether a function is decorated with triton.jit, with or without arguments."""
    return isinstance(function, ast.FunctionDef) and any(
        "jit" in {getattr(node, "attr", ""), getattr(node, "id", "")}
        for decorator in function.decorator_list
        for node in ast.walk(decorator)
    )


def jit_functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and is_jit(node)]


@functools.cache
def parse_module(name: str) -> ast.Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text())


def launched_kernels(trees: Iterable[ast.Module]) -> set[str]:
    """The jit functions that no jit function names: those that the host launches."""
    functions = [function for tree in trees for function in jit_functions(tree)]
    named = {
        node.id if isinstance(node, ast.Name) else node.attr
        for function in functions
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name | ast.Attribute)
    }
    return {function.name for function in functions} - named


def test_every_kernel_has_cases() -> None:
    launched = launched_kernels(parse_module(name) for name in triton_modules())
    assert launched == {kernel_name(case) for case in all_cases().values()}


def argument_dtypes(cases: Iterable[CompileCase]) -> dict[str, dict[str, set[str]]]:
    """For each kernel and pointer argument, the element types over its cases."""
    seen: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for case in cases:
        for argument, kind in case.signature.items():
            if kind.startswith("*"):
                seen[kernel_name(case)][argument].add(kind.lstrip("*"))
    return seen


def missing_dtypes(cases: Iterable[CompileCase]) -> dict[str | tuple[str, str], str]:
    """Kernels, and (kernel, argument), that are not compiled in fp32, fp16 and bf16, and what is missing.

    A kernel needs one argument in all three; so does every argument that is compiled in half precision.
    """
    missing: dict[str | tuple[str, str], str] = {}
    for kernel, arguments in argument_dtypes(cases).items():
        if not any(kinds >= FLOATS for kinds in arguments.values()):
            missing[kernel] = f"no argument in all of {sorted(FLOATS)}"
        for argument, kinds in arguments.items():
            if kinds & {"fp16", "bf16"} and not kinds >= FLOATS:
                missing[kernel, argument] = f"not in {sorted(FLOATS - kinds)}"
    return missing


def test_every_kernel_is_compiled_in_every_dtype_but_where_declared() -> None:
    """An exception that is no longer needed fails too."""
    assert missing_dtypes(all_cases().values()).keys() == {*OTHER_DTYPES, *NO_FLOATS}


def test_every_module_is_found() -> None:
    root = Path(importlib.import_module("prunebench_kernels").__file__ or "").parent
    assert len(triton_modules()) == len(list(root.rglob("*_triton.py")))


# --- the machinery itself ----------------------------------------------------------------------------------

THROWAWAY = """
import triton
import triton.language as tl

from prunebench_kernels.compile_cases import CompileCase
from prunebench_kernels.machine_code import count_instructions


@triton.jit
def double(value):
    return value + value


@triton.jit
def square(x, y, SIZE: tl.constexpr, DOT: tl.constexpr):
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    tile = tl.load(x + rows * SIZE + columns)
    if DOT:
        out = tl.dot(tile, tile)
    else:
        out = tl.trans(tl.trans(tile) * 0.5).to(tl.float32)
    tl.store(y + rows * SIZE + columns, double(out))


def case(name, size, dot, warps, aligned=("x", "y")):
    signature = {"x": "*fp16", "y": "*fp32", "SIZE": "constexpr", "DOT": "constexpr"}
    expects = frozenset({"tensor-cores", "vector-loads"})
    return CompileCase(name, square, signature, {"SIZE": size, "DOT": dot}, aligned, warps, 2, expects)


COMPILE_CASES = (
    case("sound", 64, True, 4),
    case("spilling", 128, True, 1),
    case("no matrix instruction", 64, False, 4),
    case("no vector load", 64, True, 4, aligned=()),
)
"""


@pytest.fixture(scope="module")
def throwaway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of four cases: one sound, three that break a rule each."""
    folder = tmp_path_factory.mktemp("throwaway")
    (folder / "throwaway_triton.py").write_text(THROWAWAY)
    return folder


@pytest.fixture(scope="module")
def caught(throwaway: Path) -> tuple[list[str], dict[tuple[str, int], CompiledFigures]]:
    table = throwaway / "compiled.csv"
    done = run_ahead(table, "--modules", "throwaway_triton", path=throwaway)
    assert done.returncode == 1, done.stderr
    return done.stdout.splitlines(), {(row.case, row.capability): row for row in read_table(table)}


def test_broken_kernels_are_caught(
    caught: tuple[list[str], dict[tuple[str, int], CompiledFigures]],
) -> None:
    lines, rows = caught
    assert len(rows) == 8
    for capability, instruction in ((80, "HMMA"), (90, "HGMMA")):
        assert any(line.startswith(f"spilling on sm_{capability}: spills") for line in lines)
        assert f"no matrix instruction on sm_{capability}: no {instruction} instruction" in lines
        assert f"no vector load on sm_{capability}: no 128-bit load from global memory" in lines
    assert not [line for line in lines if line.startswith("sound")]


def test_the_figures_of_a_sound_kernel(
    caught: tuple[list[str], dict[tuple[str, int], CompiledFigures]],
) -> None:
    _, rows = caught
    ampere, hopper = rows["sound", 80], rows["sound", 90]
    assert ampere.kernel == "square"
    assert (ampere.hgmma, hopper.hmma) == (0, 0)
    assert min(ampere.hmma, hopper.hgmma, ampere.vector_loads, hopper.vector_loads) > 0
    assert 16 <= ampere.registers <= 255
    assert ampere.stack_bytes == ampere.spill_stores == 0
    assert rows["spilling", 80].stack_bytes > 0


def test_too_much_shared_memory_is_caught(
    caught: tuple[list[str], dict[tuple[str, int], CompiledFigures]],
) -> None:
    sound = caught[1]["sound", 80]
    case = CompileCase("sound", None, {})
    assert not violations(case, replace(sound, shared_bytes=163 * 1024))
    assert violations(case, replace(sound, shared_bytes=163 * 1024 + 1)) == [
        "sound on sm_80: 166913 bytes of shared memory, the limit is 166912"
    ]


def test_helpers_are_not_kernels() -> None:
    assert launched_kernels([ast.parse(THROWAWAY)]) == {"square"}


def test_a_missing_dtype_is_caught(throwaway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(throwaway))
    cases = cases_of(importlib.import_module("throwaway_triton"))
    assert missing_dtypes(cases) == {
        "square": "no argument in all of ['bf16', 'fp16', 'fp32']",
        ("square", "x"): "not in ['bf16', 'fp32']",
    }


def test_a_name_used_twice_is_an_error(throwaway: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(throwaway))
    with pytest.raises(ValueError, match="repeats the name 'sound'"):
        all_cases(["throwaway_triton", "throwaway_triton"])


def test_a_case_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    source = THROWAWAY.split("COMPILE_CASES")[0] + 'COMPILE_CASES = (case("odd size", 17, True, 4),)\n'
    (tmp_path / "odd_triton.py").write_text(source)
    done = run_ahead(tmp_path / "table.csv", "--modules", "odd_triton", path=tmp_path)
    assert done.returncode == 1
    assert "odd size on sm_80: CompilationError" in done.stdout


def test_a_table_keeps_the_rows_of_other_versions(
    caught: tuple[list[str], dict[tuple[str, int], CompiledFigures]], tmp_path: Path
) -> None:
    rows = list(caught[1].values())
    older = [replace(row, triton="3.6.0") for row in rows]
    write_table(tmp_path / "table.csv", [*rows, *older])
    assert read_table(tmp_path / "table.csv") == sorted([*older, *rows], key=lambda row: row.key)


def test_instructions_are_counted_by_opcode() -> None:
    listing = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R19], desc[UR22][R4.64], P3 ;
        /*0020*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0030*/               @P1 STL.64 [R1+0x8], R2 ;
        /*0040*/                   LDL R2, [R1] ;
        /*0050*/                   LDS.128 R2, [R1] ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, 0x2 ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0080*/                   IMMA.16832.S8.S8 R4, R2.ROW, R3.COL, R4 ;
    """
    assert count_instructions(listing) == {
        "spill_stores": 1,
        "spill_loads": 1,
        "hgmma": 1,
        "hmma": 0,
        "imma": 1,
        "vector_loads": 2,
        "wgmma_depth": 2,
    }
