"""A DCWP run through the Triton kernels (in the interpreter) and one through torch find the same masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TASK, run_inline
from prunebench_kernels import mask_sampling as kernels
from prunebench_kernels.mask_sampling import sample_masks
from safetensors.torch import load_file
from torch import Tensor

from prunebench.models import nets
from prunebench.pruning.learned import LearnedMasks
from prunebench.pruning.masks import make_masks, prunable
from prunebench.suites import Suite

STEPS, SPARSITY, LAYERS = 3, 0.5, 3


def run(backend: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], str]:
    """The learned logits, and the hash of the outputs, of one run whose kernels come from `backend`."""
    monkeypatch.setenv("PRUNEBENCH_KERNELS", backend)
    suite = Suite(
        "tiny",
        (TASK,),
        ("dcwp",),
        (SPARSITY,),
        (0,),
        model="convnet-small",
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


@pytest.mark.slow
def test_both_backends_find_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        nets.MODELS, "convnet-small", lambda classes, _, width: nets.convnet((4, 8), classes, width)
    )
    expected, expected_outputs = run("torch", tmp_path / "torch", monkeypatch)
    launches = [counted(monkeypatch, kernels, name) for name in ("launch_sample", "launch_sample_backward")]
    actual, actual_outputs = run("triton", tmp_path / "triton", monkeypatch)

    assert [len(calls) for calls in launches] == [STEPS, STEPS], "one launch each way for all layers"
    assert list(actual) == list(expected)
    assert len(expected) == LAYERS

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


def test_passes_are_counted_where_a_captured_graph_can_count_them() -> None:
    """Each pass adds to a tensor, and draws what the same number draws when it is given."""
    net = nets.convnet((4, 8), 3)
    weights = prunable(net)
    learner = LearnedMasks(net, seed=6)
    counter = learner.draws
    for number in range(3):
        masked = learner.draw_weights()
        masks = sample_masks(learner.logits, seed=6, offset=number).split(
            [one.numel() for one in weights.values()]
        )
        for (name, weight), mask in zip(weights.items(), masks):
            assert torch.equal(masked[name], weight * mask.view(weight.shape)), name
    assert learner.draws is counter
    assert counter.tolist() == [3]
    masked["head.weight"].sum().backward()  # of its own number, whatever the count is by now
    assert learner.logits.grad is not None
    counter.fill_(2)
    assert torch.equal(learner.draw_weights()["head.weight"], masked["head.weight"])
