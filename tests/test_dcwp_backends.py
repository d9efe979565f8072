"""A DCWP run through the Triton kernels (in the interpreter) and one through torch find the same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TASK, run_inline
from prunebench_kernels import mask_sampling_triton, masked_conv_backward_triton, masked_conv_triton
from safetensors.torch import load_file
from torch import Tensor

from prunebench.models import nets
from prunebench.pruning.masks import make_masks
from prunebench.suite import Suite

STEPS, SPARSITY, CONVOLUTIONS = 3, 0.5, 2


def run(backend: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], str]:
    """The learned logits, and the hash of the outputs, of one run whose kernels come from `backend`."""
    monkeypatch.setenv("PRUNEBENCH_KERNELS", backend)
    suite = Suite(
        "tiny",
        (TASK,),
        ("dcwp",),
        (SPARSITY,),
        (0,),
        model="tiny",
        recipe={
            "steps": 12,
            "finetune_steps": 2,
            "batch_size": 8,
            "schedule": "constant",
            "precision": "fp32",
        },
        params={"dcwp": {"mining_steps": 6, "mask_steps": STEPS}},
    )
    _, records = run_inline(suite, out)
    record = records[f"dcwp {SPARSITY} 0"]
    assert record.status == "ok", record.reason
    stages = [load_file(path) for path in (out / "shared").glob("*.safetensors")]
    logits = next(stage for stage in stages if "head.weight" in stage)
    return {name: values for name, values in logits.items() if name.endswith("weight")}, record.outputs_sha256


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Grows by one with each call of `module.name`."""
    calls: list[str] = []
    original: Callable[..., Any] = getattr(module, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counting)
    return calls


def test_both_backends_find_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nets.MODELS, "tiny", lambda classes, _: nets._convnet((4, 8), classes))
    expected, expected_outputs = run("torch", tmp_path / "torch", monkeypatch)
    launches = [
        counted(monkeypatch, module, name)
        for module, name in (
            (mask_sampling_triton, "forward"),
            (mask_sampling_triton, "backward"),
            (masked_conv_triton, "launch_forward"),
            (masked_conv_backward_triton, "launch_wgrad"),
        )
    ]
    actual, actual_outputs = run("triton", tmp_path / "triton", monkeypatch)

    layers = CONVOLUTIONS + 1
    assert [len(calls) for calls in launches] == [STEPS, STEPS, STEPS * CONVOLUTIONS, STEPS * CONVOLUTIONS]
    assert list(actual) == list(expected)
    assert len(expected) == layers

    # Sums in another order: the logits differ in the last bits. Masks could only differ by a tie at the cut,
    # and the two logits there are farther apart than the backends.
    flat = [torch.cat([values.flatten() for values in logits.values()]) for logits in (expected, actual)]
    difference = float((flat[0] - flat[1]).abs().max())
    assert difference < 5e-6
    ordered = flat[0].sort(descending=True).values
    kept = round(len(ordered) * (1 - SPARSITY))
    assert float(ordered[kept - 1] - ordered[kept]) > 4 * difference, "a tie at the cut"
    assert float(ordered[0] - ordered[-1]) > 1e-2, "the logits were learned"

    masks = [make_masks(logits, SPARSITY) for logits in (expected, actual)]
    for name, mask in masks[0].items():
        assert torch.equal(masks[1][name], mask), name
    assert actual_outputs == expected_outputs, "the same masks, fine-tuned alike"
