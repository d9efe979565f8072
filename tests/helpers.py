"""Tiny suites and method files that several tests share."""

from __future__ import annotations

from pathlib import Path

from prunebench.api import Outcome, execute_plan, make_plan
from prunebench.results.record import RunRecord
from prunebench.results.store import Store
from prunebench.suites import Suite

TASK = "colored-digits@2pct"
RECIPE = {"steps": 12, "finetune_steps": 6, "batch_size": 32, "schedule": "constant"}

CRITERION_FILE = '''"""Keep the weights that are large for their output channel."""

from prunebench import criterion


@criterion("channel-relative", cite="an example")
def channel_relative(weight, context):
    magnitude = weight.abs()
    return magnitude / magnitude.flatten(1).mean(1).clamp(min=1e-12).view(-1, *[1] * (weight.ndim - 1))
'''


METHOD_FILE = """
from prunebench import method
from prunebench.pruning.masks import make_masks, prunable, apply_masks


@method("peeking", cite="nobody", supervision="{supervision}")
class Peeking:
    def fit(self, experiment, sparsity):
        {peek}
        model = experiment.dense_model()
        masks = make_masks({{name: w.detach().abs() for name, w in prunable(model).items()}}, sparsity)
        apply_masks(model, masks)
        return experiment.finetune(model, masks)
"""


def write_careless_method(path: Path, body: str) -> None:
    """A method file that does `body` between pruning and fine-tuning."""
    text = METHOD_FILE.format(supervision="none", peek="pass")
    finetune = "        return experiment.finetune"
    path.write_text(text.replace(finetune, f"        {body}\n{finetune}"))


def tiny_suite(
    *methods: str, sparsities: tuple[float, ...] = (0.9,), seeds: tuple[int, ...] = (0,), **settings
) -> Suite:
    """A suite on real digits that takes a second a cell."""
    return Suite("tiny", (TASK,), methods, sparsities, seeds, recipe=RECIPE, **settings)


def run_inline(
    suite: Suite, out: Path, *, data_root: Path | None = None
) -> tuple[Outcome, dict[str, RunRecord]]:
    """Run a suite in this process; gives the outcome and the records by `method sparsity seed`."""
    outcome = execute_plan(make_plan(suite, out=out, data_root=data_root), workers=0)
    records, damaged = Store(out).records()
    assert not damaged
    return outcome, {name_of(record): record for record in records}


def name_of(record: RunRecord) -> str:
    spec = record.run_spec
    return f"{spec.method} {spec.sparsity} {spec.seed}"
