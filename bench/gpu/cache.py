"""A Triton cache made on a machine without a GPU, for one that has it: there nothing is compiled again.

    python bench/gpu/cache.py --out bench/gpu/cache.tar.xz [--capability 90]

Run it with the Python and the Triton of the GPU machine (the key of a kernel holds Triton's hash). Every item's
kernels are called on CPU tensors of full size under `bench/standin.py`: Triton's own launch path compiles them, and
the launch does nothing. Kept are machine code, metadata, and the C launchers that Triton otherwise has gcc build at
the first launch of each signature; `made.json` says from which commit, source and Triton.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

MADE = "made.json"
KEPT = (".cubin", ".json")


# --- there: no torch, no Triton ---------------------------------------------------------------------------------


def unpack(packed: Path, folder: Path) -> tuple[int, str]:
    """Unpack into the folder of Triton's cache: how many kernels, and why the cache cannot serve, if so.

    Triton keeps absolute paths in its groups of files: they are written for this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    made = json.loads((folder / MADE).read_text())
    try:
        here = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        here = "none"
    if here != made["triton"]:
        return 0, f"it is of Triton {made['triton']}, here is {here}"
    groups = list(folder.glob("*/__grp__*.json"))
    for group in groups:
        names = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.parent / name) for name in names}}))
    return len(groups), ""


# --- here -------------------------------------------------------------------------------------------------------


def pack(folder: Path, made: dict[str, Any], used: Container[str]) -> bytes:
    """Of a Triton cache, as tar.xz: machine code and metadata of the kernels in folders that are `used`, launchers."""
    holder = io.BytesIO()
    with tarfile.open(fileobj=holder, mode="w:xz", preset=9) as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        add(MADE, json.dumps(made, indent=1).encode())
        for path in sorted(folder.glob("*/*")):
            name = path.relative_to(folder).as_posix()
            if path.parent.name not in used and not path.name.endswith(".so"):
                continue
            if path.name.startswith("__grp__"):
                paths = json.loads(path.read_text())["child_paths"]
                kept = {child: child for child in paths if child.endswith(KEPT)}
                add(name, json.dumps({"child_paths": kept}).encode())
            elif path.name.endswith((*KEPT, ".so")) and path.is_file():
                add(name, path.read_bytes())
    return holder.getvalue()


def fill(capability: int, only: Sequence[str], log: Callable[[str], None]) -> int:
    """Call the kernels of all items into the cache of this process; how many calls raised before they launched."""
    import standin
    import torch
    from torch.nn import functional
    from triton.runtime import driver

    from gpu.items import all_items
    from gpu.schedule import Context

    context, bad = Context(torch.device("cpu"), is_full=True, compiles=False), 0
    real, functional.conv2d = functional.conv2d, _no_convolution()
    try:
        with standin.stand_in(capability) as seen:
            sources: set[str] = set()
            driver.active.launcher_cls = _watching(driver.active.launcher_cls, sources)
            for item in all_items():
                if item.kernels is None or not any(fnmatch.fnmatch(item.name, glob) for glob in only):
                    continue
                start, before = time.monotonic(), len(seen.kernels)
                try:
                    ended = [_call(call, seen) for call in item.kernels(context)]
                except Exception as error:
                    ended = [(False, f"{type(error).__name__}: {error}")]
                log(f"{item.name}: {len(seen.kernels) - before} kernels, {time.monotonic() - start:.0f} s")
                bad += sum(not launched for launched, _ in ended)
                for launched, reason in sorted({one for one in ended if one[1]}):
                    log(f"    {'after its kernels' if launched else 'no kernel'}: {reason.splitlines()[0]}")
            build_launchers(sources)
    finally:
        functional.conv2d = real
    return bad


def _call(call: Callable[[], object], seen: Any) -> tuple[bool, str]:
    """Make the call: whether it launched a kernel or ended well, and what it raised. Results are whatever memory held,
    so that a call may well end in an error after its kernels."""
    launched = len(seen.launches)
    try:
        call()
    except Exception as error:
        return len(seen.launches) > launched, f"{type(error).__name__}: {error}"
    return True, ""


def _no_convolution() -> Callable[..., Any]:
    """In place of torch's convolution, which takes seconds on a CPU: right shapes and dtypes, and no numbers."""
    import torch

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, *settings: Any) -> Any:
            ctx.given = x, weight
            shapes = (torch.empty(tensor.shape, device="meta") for tensor in (x, weight))
            shape, last = torch.conv2d(*shapes, None, *settings).shape, torch.channels_last
            return torch.empty(shape, dtype=x.dtype, memory_format=last).zero_()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return *map(torch.empty_like, ctx.given), None, None, None, None

    def convolution(x: Any, weight: Any, bias: Any = None, *settings: Any, **named: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            x, weight = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (x, weight))
        order = ("stride", "padding", "dilation", "groups")
        given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | dict(zip(order, settings)) | named
        return Nothing.apply(x, weight, *(given[name] for name in order))

    return convolution


def _watching(plain: type, sources: set[str]) -> type:
    """The launcher class of the stand-in that also keeps the C source which Triton would build."""
    from triton.backends.nvidia import driver

    class Watching(plain):  # type: ignore[misc,valid-type]
        def __init__(self, source: Any, metadata: Any) -> None:
            super().__init__(source, metadata)
            if not hasattr(driver, "make_launcher"):
                return  # newer Tritons have one launcher for all signatures
            names, constants = source.fn.arg_names, getattr(source, "constants", {}).items()
            places = {(names.index(key),) if isinstance(key, str) else key: value for key, value in constants}
            descriptors = getattr(metadata, "tensordesc_meta", None)
            sources.add(driver.make_launcher(places, dict(source.signature.items()), descriptors))

    return Watching


def build_launchers(sources: Iterable[str]) -> None:
    """Put into the cache what Triton's `compile_module_from_src` would: launchers, and its driver utilities.

    Without a GPU's driver a libcuda.so.1 of empty functions is linked; what defines nothing the linker leaves out.
    """
    import sysconfig

    from triton.backends.nvidia import driver
    from triton.runtime import build, cache

    wanted = [((Path(driver.dirname) / "driver.c").read_text(), "cuda_utils")]
    wanted += [(text, "__triton_launcher") for text in sorted(sources)]
    names = sorted({name for text, _ in wanted for name in re.findall(r"\bcu[A-Z]\w+", text)})
    with tempfile.TemporaryDirectory() as folder:
        stub, code = Path(folder) / "libcuda.so.1", Path(folder) / "stub.c"
        code.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
        command = ["gcc", "-shared", "-fPIC", str(code), "-Wl,-soname,libcuda.so.1", "-o", str(stub)]
        subprocess.run(command, check=True)
        for text, name in wanted:
            manager = cache.get_cache_manager(
                hashlib.sha256((text + build.platform_key()).encode()).hexdigest()
            )
            file, source = f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}", Path(folder) / f"{name}.c"
            if manager.get_file(file) is None:
                source.write_text(text)
                libraries = [driver.libdevice_dir, folder]
                built = build._build(
                    name, str(source), folder, libraries, driver.include_dirs, driver.libraries, []
                )
                subprocess.run(["strip", built], check=False)
                manager.put(Path(built).read_bytes(), file, binary=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a call raised before it launched its kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the packed cache")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU: 90 for an H100 or H200")
    parser.add_argument(
        "--only", nargs="+", metavar="GLOB", default=["*"], help="only the kernels of items of these names"
    )
    parser.add_argument("--folder", type=Path, help="keep Triton's own cache here: a second call adds to it")
    parser.add_argument(
        "--check", action="store_true", help="only say what --out lacks: exit code 1 if anything"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        os.environ["TRITON_CACHE_DIR"] = str(folder)
        os.environ.pop("TRITON_INTERPRET", None)
        here = Path(__file__).resolve()
        sys.path[:0] = [str(path) for path in (here.parents[2], here.parents[2] / "kernels", here.parents[1])]
        return _check(options, folder) if options.check else _make(options, folder)


def _say(line: str) -> None:
    print(line, flush=True)


def _make(options: argparse.Namespace, folder: Path) -> int:
    import triton
    from triton.runtime.cache import triton_key

    from gpu.machine import commit

    start, used = time.monotonic(), set()

    def listen(*, metadata_group: dict[str, str], **_: Any) -> None:
        used.update(Path(path).parent.name for path in metadata_group.values())

    triton.knobs.compilation.listener = listen
    bad = fill(options.capability, options.only, _say)
    made = {**commit(), "triton": triton.__version__, "capability": options.capability}
    made["triton_key"] = hashlib.sha256(triton_key().encode()).hexdigest()
    packed = pack(folder, made, used)
    options.out.write_bytes(packed)
    size, seconds = len(packed) / 2**20, time.monotonic() - start
    _say(f"{options.out}: {len(used)} kernels, {size:.1f} MiB, {seconds:.0f} s; {bad} calls failed")
    return int(bad > 0)


def _check(options: argparse.Namespace, folder: Path) -> int:
    from gpu.trip import count_compiled

    _, refused = unpack(options.out, folder)
    kernels = count_compiled()
    fill(options.capability, options.only, lambda line: None)
    new = kernels["compiled anew"]
    _say(f"{len(kernels['from the cache'])} kernels from {options.out}, compiled anew: {len(new)} {refused}")
    for name in sorted(new):
        _say(f"    {name}")
    return int(bool(new))


if __name__ == "__main__":
    sys.exit(main())
