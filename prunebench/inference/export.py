"""Export of a network to a file that other programs read: ONNX, `torch.export` or safetensors; and its reading.

Files of the first two take images as the network is fed them (normalised, float32 `[N, C, H, W]`, any N) and give
logits. BatchNorm is folded in them and channels that are dead are gone; all other zeros are stored as zeros, for
neither format has a sparse convolution.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.errors import UsageError, unknown
from prunebench.results.store import read_tensors, write_tensors

FORMS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
"""What a network is exported to, and the ending of such a file."""
OPSET = 18
"""Of ONNX: the exporter's own, which every runtime of the last years takes."""
INPUT, OUTPUT = "images", "logits"
BATCH = 4
"""Images of the example that a network is traced with; a batch of one would be taken for a constant."""

Forward = Callable[[Tensor], Tensor]


def check_form(form: str) -> None:
    """Raise UsageError for an unknown form, or naming the packages that it lacks here."""
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if form == "onnx":
        check_packages("onnx", "ONNX", "onnx", "onnxscript", "onnxruntime")


def check_packages(extra: str, what: str, *modules: str) -> None:
    """Raise UsageError with the command that installs the extra, if one of its modules is not there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{what} needs {', '.join(missing)}, of the extra `{extra}`: pip install 'prunebench[{extra}]' "
            f"(uv sync --extra {extra})"
        )


def exportable(net: nn.Module, x: Tensor) -> nn.Module:
    """The network as it is exported: BatchNorm folded and dead channels removed; itself where it cannot be traced."""
    from prunebench_kernels.fold import TracingError
    from prunebench_kernels.sparsify import without_dead_channels

    net.eval()
    try:
        return without_dead_channels(net, x[:BATCH])
    except TracingError:
        return net


def write_network(net: nn.Module, x: Tensor, path: Path, form: str, facts: Mapping[str, str]) -> None:
    """Write a network as `form` (one of FORMS).

    Args:
        net: the network; it is put into evaluation mode. As safetensors its state is written as it is.
        x: images as it is fed, two or more.
        path: the file.
        form: one of FORMS.
        facts: texts that a file of ONNX or `torch.export` holds beside the network.
    """
    if form == "safetensors":
        write_tensors(path, net.state_dict())
        return
    module, example = _plain(exportable(net, x)), x[:BATCH].contiguous()
    shapes = ({0: torch.export.Dim("batch")},)
    if form == "torch":
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        torch.export.save(program, path, extra_files=dict(facts))
        return
    with _quiet():
        written = torch.onnx.export(
            module, (example,), input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=shapes,
            opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert written is not None
    written.model.metadata_props.update(facts)
    written.save(path, external_data=False)


def _plain(net: nn.Module) -> nn.Module:
    """A copy with weights that lie as their shape says: other runtimes choose their own order."""
    made = copy.deepcopy(net).eval().requires_grad_(False)
    for value in [*made.parameters(), *made.buffers()]:
        value.data = value.data.contiguous()
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: its warnings are of its own code."""
    log, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def read_network(path: Path, form: str, net: nn.Module) -> Forward:
    """What an exported file computes, by its own runtime; of safetensors by a copy of the network."""
    if form == "onnx":
        return onnx_runtime(path)
    if form == "torch":
        return torch.export.load(path).module()
    made = copy.deepcopy(net).eval()
    made.load_state_dict(read_tensors(path))
    return made


def onnx_runtime(path: Path, threads: int = 1) -> Forward:
    """A network in ONNX Runtime on the CPU, its graph optimised, with so many threads."""
    run = onnx_session(path, threads)
    return lambda x: torch.from_numpy(run.run(None, {INPUT: x.contiguous().numpy()})[0])


def onnx_session(path: Path, threads: int) -> Any:
    """The session of ONNX Runtime. Its threads stop spinning after a call: they would disturb what runs next."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def opset_of(path: Path) -> int | None:
    """The version of ONNX's own operators that a file is written in."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), None)


@torch.inference_mode()
def largest_difference(
    forward: Forward, net: nn.Module, batches: Iterator[Tensor]
) -> tuple[float, float, int]:
    """The largest |difference| of outputs from the network's, its largest |output|, and the images compared.

    nan where an output is.
    """
    net.eval()
    apart, largest, count = [0.0], [0.0], 0
    for x in batches:
        here, there = net(x), forward(x)
        if here.shape != there.shape:
            raise UsageError(f"the exported network gives {tuple(there.shape)}, want {tuple(here.shape)}")
        apart.append(float((here - there).abs().max()))
        largest.append(float(here.abs().max()))
        count += len(x)
    worst = torch.tensor(apart).max()  # max() of Python would pass over nan
    return float(worst), max(largest), count
