"""DCWP as it was released, written down plainly, and the project's own: the same draws, the same schedule.

    uv run python bench/dcwp_reference.py --data-root data          # train what the CSV lacks, then page and CSV
    uv run python bench/dcwp_reference.py --data-root data --full   # the same with every step of `cmnist-short`
    uv run python bench/dcwp_reference.py --no-run                  # the page from the CSV

The reference is a script of torch alone: it takes nothing from the project's methods, models or loops, so that it can
disagree with them. Every finished run is kept in the CSV at once; the same command resumes.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from prunebench.api import execute_plan, make_plan
from prunebench.errors import PruneBenchError
from prunebench.report import format as fmt
from prunebench.report.markdown import fill_part, markdown_table
from prunebench.report.table import Column, RowGroup, Table, text_column
from prunebench.results.store import Store, write_atomically
from prunebench.stats.intervals import Interval, mean_interval
from prunebench.suites import Suite, load_suite
from prunebench.tasks.base import Split
from prunebench.tasks.registry import resolve_task
from prunebench.training.loop import resolve_precision

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dcwp-reference.md"
PART = "dcwp-reference"
SUITE = "cmnist-short"
METHOD = "dcwp-native"
TASKS = ("colored-mnist@1pct", "colored-mnist@5pct")
LIMITS = {"unbiased": 0.03, "sparsity": 0.05}
"""How far the two may lie apart in the mean over seeds."""


# The released algorithm: Park et al., "Training debiased subnetworks with contrastive weight pruning" (CVPR 2023),
# with the settings of its scripts for Colored MNIST.

WIDTHS = (64, 128, 256)
GATE_START = 1.5
GCE_POWER = 0.7
TEMPERATURE = 0.07
CONTRASTIVE_SHARE = 0.05
SPARSITY_SHARE = 1e-8
MASK_UPWEIGHT = 80.0
"""How much more often a mined sample is drawn while gates are learned, at every bias."""
FINETUNE_UPWEIGHT = {0.005: 80.0, 0.01: 50.0, 0.02: 30.0, 0.05: 10.0}
"""The same in fine-tuning, by the share of conflicting images."""
MINING_RATE, PRETRAIN_RATE, GATE_RATE, FINETUNE_RATE = 1e-1, 1e-2, 1e-2, 1e-3
BETAS = (0.9, 0.99)
"""Of Adam on weights; Adam on gates has torch's own."""


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps of each stage, and samples a step."""

    mining: int
    pretrain: int
    mask: int
    finetune: int
    batch: int


SHORT = Schedule(mining=300, pretrain=300, mask=500, finetune=200, batch=256)


class GatedLayer(nn.Module):
    """A convolution or linear layer with a gate on each weight; without a `gate` function all are open."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.logit = nn.Parameter(torch.full_like(layer.weight, GATE_START))
        self.gate: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight if self.gate is None else self.layer.weight * self.gate(self.logit)
        return functional_call(self.layer, {"weight": weight}, (x,))


class GatedNet(nn.Module):
    """The Colored-MNIST network: three 4 x 4 convolutions of stride 2 with BatchNorm and ReLU, mean, linear."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for before, after in zip((3, *WIDTHS), WIDTHS):
            body.append(GatedLayer(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)))
            body += [nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.head = GatedLayer(nn.Linear(WIDTHS[-1], classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, C]` and the features `[B, F]` before them, float32."""
        feature = self.body(x).float().mean((2, 3))
        return self.head(feature).float(), feature

    def gated(self) -> list[GatedLayer]:
        return [module for module in self.modules() if isinstance(module, GatedLayer)]

    def set_gate(self, gate: Callable[[Tensor], Tensor] | None) -> None:
        for layer in self.gated():
            layer.gate = gate

    def logits_of_gates(self) -> list[nn.Parameter]:
        return [layer.logit for layer in self.gated()]

    def weights(self) -> list[nn.Parameter]:
        """All that is not a gate."""
        return [parameter for name, parameter in self.named_parameters() if not name.endswith(".logit")]

    def sparsity(self) -> float:
        """The share of weights whose gate the threshold closes."""
        logits = torch.cat([logit.detach().flatten() for logit in self.logits_of_gates()])
        return float((threshold_gate(logits) == 0).double().mean())


def gate_of_noise(logit: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A sampled gate, 0 or 1, of two uniform noises; its gradient is that of the sigmoid.

    The logistic noise log(log(first) / log(second)) is added to sigmoid(logit), not to the logit: as released, a
    gate is open with probability sigmoid(sigmoid(logit)), never less than a half.
    """
    tiny = 1e-10
    noise = -torch.log(torch.log(second + tiny) / torch.log(first + tiny) + tiny)
    soft = torch.sigmoid(torch.sigmoid(logit) + noise)
    return (soft > 0.5).float() - soft.detach() + soft


def sampled_gate(logit: Tensor) -> Tensor:
    """A gate for one step of learning."""
    first, second = torch.rand(2, *logit.shape)
    return gate_of_noise(logit, first, second)


def threshold_gate(logit: Tensor) -> Tensor:
    """The gate that is kept: open where the logit is not negative."""
    return (logit >= 0).float()


def gce_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of q p^q CE with p, the label's probability, held constant: what is easy counts more."""
    probability = logits.detach().softmax(1).gather(1, y[:, None])[:, 0]
    return (GCE_POWER * probability**GCE_POWER * functional.cross_entropy(logits, y, reduction="none")).mean()


def contrastive_loss(feature: Tensor, y: Tensor, mined: Tensor) -> Tensor:
    """Mean over anchors i of -log share of p among all others of i, averaged over its positives p.

    Positives of i are the other samples of its class that were mined, whether or not i was. Samples without any are no
    anchors; without an anchor the loss is 0, where the released code divides by zero.
    """
    unit = functional.normalize(feature, dim=1)
    closeness = unit @ unit.T / TEMPERATURE
    others = ~torch.eye(len(y), dtype=torch.bool)
    positives = others & (y[:, None] == y[None, :]) & mined[None, :]
    anchors = positives.any(1)
    if not anchors.any():
        return feature.sum() * 0.0
    log_share = closeness - (closeness.exp() * others).sum(1, keepdim=True).log()
    each = -(log_share * positives).sum(1)[anchors] / positives.sum(1)[anchors]
    return each.mean()


def epochs(count: int, batch: int) -> Iterator[Tensor]:
    """Rows of step after step: epochs in ever new orders, each with its smaller last batch."""
    while True:
        yield from torch.randperm(count).split(batch)


def draws(mined: Tensor, upweight: float, batch: int) -> Iterator[Tensor]:
    """Rows of step after step, drawn with replacement, mined ones `upweight` times as often."""
    weight = torch.where(mined, upweight, 1.0)
    while True:
        yield torch.multinomial(weight, batch, replacement=True)


class ReleasedDcwp:
    """The algorithm on images x, uint8 `[N, 3, H, W]`, with labels y `[N]`; it sees no bias label.

    The released code trains a biased and a main network at once and uses one of them a stage; only that one is
    trained here.
    """

    def __init__(self, x: Tensor, y: Tensor, schedule: Schedule, *, bf16: bool) -> None:
        self.x, self.y, self.schedule, self.bf16 = x, y, schedule, bf16
        self.classes = int(y.max()) + 1

    def fit(self, finetune_upweight: float) -> tuple[GatedNet, Tensor]:
        """The pruned network, and which samples were mined, bool `[N]`."""
        mined = self.mine()
        network = self.pretrain()
        self.learn_gates(network, mined)
        self.finetune(network, mined, finetune_upweight)
        return network, mined

    def mine(self) -> Tensor:
        """The samples that a network trained to be biased gets wrong."""
        network, steps = GatedNet(self.classes), self.schedule.mining
        optimizer = torch.optim.SGD(network.weights(), MINING_RATE, momentum=0.9, weight_decay=1e-4)
        # a tenth of the rate after 600, 1,200 and 1,800 of the 2,000 released steps
        decay = torch.optim.lr_scheduler.StepLR(optimizer, max(1, round(0.3 * steps)), 0.1)
        rows = itertools.islice(epochs(len(self.y), self.schedule.batch), steps)
        self.train(
            network, optimizer, rows, lambda logits, _, at: gce_loss(logits, self.y[at]), after=decay.step
        )
        return self.predict(network, self.x) != self.y

    def pretrain(self) -> GatedNet:
        """The main network, with all gates open."""
        network = GatedNet(self.classes)
        optimizer = torch.optim.Adam(network.weights(), PRETRAIN_RATE, betas=BETAS)
        rows = itertools.islice(epochs(len(self.y), self.schedule.batch), self.schedule.pretrain)
        self.train(
            network, optimizer, rows, lambda logits, _, at: functional.cross_entropy(logits, self.y[at])
        )
        return network

    def learn_gates(self, network: GatedNet, mined: Tensor) -> None:
        """Gates alone are stepped; BatchNorm follows the sampled networks."""
        gates = network.logits_of_gates()
        rows = itertools.islice(draws(mined, MASK_UPWEIGHT, self.schedule.batch), self.schedule.mask)

        def loss(logits: Tensor, feature: Tensor, at: Tensor) -> Tensor:
            open_gates = torch.stack([gate.sum() for gate in gates]).sum()
            return self.debiased_loss(logits, feature, at, mined) + SPARSITY_SHARE * open_gates

        network.set_gate(sampled_gate)
        self.train(network, torch.optim.Adam(gates, GATE_RATE), rows, loss)

    def finetune(self, network: GatedNet, mined: Tensor, upweight: float) -> None:
        """Weights go on from where they were, behind the gates that the threshold leaves open."""
        rows = itertools.islice(draws(mined, upweight, self.schedule.batch), self.schedule.finetune)
        optimizer = torch.optim.Adam(network.weights(), FINETUNE_RATE, betas=BETAS)
        network.set_gate(threshold_gate)
        self.train(
            network,
            optimizer,
            rows,
            lambda logits, feature, at: self.debiased_loss(logits, feature, at, mined),
        )

    def debiased_loss(self, logits: Tensor, feature: Tensor, at: Tensor, mined: Tensor) -> Tensor:
        y = self.y[at]
        return functional.cross_entropy(logits, y) + CONTRASTIVE_SHARE * contrastive_loss(
            feature, y, mined[at]
        )

    def train(
        self,
        network: GatedNet,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Tensor],
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
        after: Callable[[], None] | None = None,
    ) -> None:
        """Step after step of an optimizer; `loss` is of logits, features and rows."""
        network.train().to(memory_format=torch.channels_last)
        for at in batches:
            network.zero_grad(set_to_none=True)
            loss(*self.answer(network, self.x[at]), at).backward()
            optimizer.step()
            if after is not None:
                after()

    def answer(self, network: GatedNet, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of images, whose pixels become 0 to 1."""
        pixels = (x.float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return network(pixels)

    @torch.no_grad()
    def predict(self, network: GatedNet, x: Tensor) -> Tensor:
        """The label that each image gets, int64 `[N]`."""
        network.eval()
        return torch.cat([self.answer(network, part)[0].argmax(1) for part in x.split(1000)])


# Runs of both


@dataclass(frozen=True)
class Run:
    """One trained network, as it rests beside the page: steps of its stages, and shares between 0 and 1."""

    task: str
    mining: int
    pretrain: int
    mask: int
    finetune: int
    batch: int
    arithmetic: str
    """Of the multiplications: fp32 or bf16."""
    seed: int
    code: str
    """`released` or `prunebench`."""
    unbiased: float
    conflicting: float
    sparsity: float
    precision: float
    """Of the mined samples, the share that conflicts."""
    recall: float

    @property
    def setting(self) -> tuple[str, int, int, int, int, int, str]:
        """What the two codes have in common in a comparison, but for the seed."""
        return (
            self.task, self.mining, self.pretrain, self.mask, self.finetune, self.batch, self.arithmetic,
        )  # fmt: skip


def accuracy_by_group(right: Tensor, split: Split) -> Tensor:
    """Accuracy of every (label, bias) pair, float64 `[C, B]`."""
    shape = (int(split.y.max()) + 1, int(split.bias.max()) + 1)
    group = split.y * shape[1] + split.bias
    count = torch.bincount(group, minlength=shape[0] * shape[1])
    hits = torch.bincount(group, weights=right.double(), minlength=shape[0] * shape[1])
    return (hits / count).reshape(shape)


def run_released(
    task_name: str, seed: int, schedule: Schedule, data_root: Path | None, arithmetic: str
) -> Run:
    """The reference on a draw of a task."""
    task = resolve_task(task_name)
    assert task.conflicting_share is not None
    splits = task.splits(data_root, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reference = ReleasedDcwp(splits.train.x, splits.train.y, schedule, bf16=arithmetic == "bf16")
        network, mined = reference.fit(FINETUNE_UPWEIGHT[task.conflicting_share])
        right = reference.predict(network, splits.test.x) == splits.test.y
    accuracy = accuracy_by_group(right, splits.test)
    conflicting = splits.train.y != splits.train.bias
    found = int((mined & conflicting).sum())
    return Run(
        task_name,
        **asdict(schedule),
        arithmetic=arithmetic,
        seed=seed,
        code="released",
        unbiased=float(accuracy.mean()),
        conflicting=float(accuracy[~torch.eye(len(accuracy), dtype=torch.bool)].mean()),
        sparsity=network.sparsity(),
        precision=found / max(1, int(mined.sum())),
        recall=found / int(conflicting.sum()),
    )


def run_own(
    task: str, seed: int, schedule: Schedule, data_root: Path | None, arithmetic: str, out: Path
) -> Run:
    """The project's method on the same draw. Raises PruneBenchError with the reason of a failed run."""
    recipe = {
        **load_suite(SUITE).recipe,
        "steps": schedule.pretrain,
        "finetune_steps": schedule.finetune,
        "batch_size": schedule.batch,
        "precision": arithmetic,
    }
    params = {METHOD: {"mining_steps": schedule.mining, "mask_steps": schedule.mask}}
    suite = Suite(PART, (task,), (METHOD,), (0.5,), (seed,), model="convnet", recipe=recipe, params=params)
    plan = make_plan(suite, out=out, data_root=data_root, device="cpu", keep_models=False)
    plan = replace(plan, context=replace(plan.context, latency_skipped="accuracies alone are compared"))
    execute_plan(plan, workers=0)
    wanted = next(run.spec.run_id for run in plan.runs if run.spec.method == METHOD)
    record = next(record for record in Store(out).records()[0] if record.run_id == wanted)
    if record.status != "ok" or record.sparsity is None or record.mining is None:
        raise PruneBenchError(f"{METHOD} of {task}, seed {seed}: {record.error}")
    values = [record.metrics[name] for name in ("unbiased", "conflicting")]
    return Run(
        task,
        **asdict(schedule),
        arithmetic=arithmetic,
        seed=seed,
        code="prunebench",
        unbiased=math.nan if values[0] is None else values[0],
        conflicting=math.nan if values[1] is None else values[1],
        sparsity=record.sparsity.achieved,
        precision=math.nan if record.mining.precision is None else record.mining.precision,
        recall=math.nan if record.mining.recall is None else record.mining.recall,
    )


def missing_runs(
    runs: Sequence[Run], tasks: Sequence[str], seeds: Sequence[int], schedule: Schedule, arithmetic: str
) -> list[tuple[str, int, str]]:
    """Task, seed and code of what is still to be trained, seed after seed so that early ends leave whole pairs."""
    done = {(run.setting, run.seed, run.code) for run in runs}
    return [
        (task, seed, code)
        for seed in seeds
        for task in tasks
        for code in ("released", "prunebench")
        if ((task, *asdict(schedule).values(), arithmetic), seed, code) not in done
    ]


# Table


@dataclass(frozen=True)
class Row:
    """One code, or the difference of the two paired by seed: means and intervals over seeds."""

    words: str
    unbiased: Interval
    conflicting: Interval
    sparsity: Interval
    precision: Interval
    recall: Interval
    verdict: str | None = None


VALUES = ("unbiased", "conflicting", "sparsity", "precision", "recall")
COLUMNS: tuple[Column[Row], ...] = (
    text_column("words", "Code", lead=True),
    Column("unbiased", "Unbiased, %", format=fmt.with_half_width),
    Column("conflicting", "Conflicting, %", format=fmt.with_half_width),
    Column("sparsity", "Native sparsity, %", format=fmt.with_half_width),
    Column("precision", "Mining: precision, %", format=fmt.with_half_width),
    Column("recall", "Mining: recall, %", format=fmt.with_half_width),
    text_column("verdict", "Mean within the limits"),
)


def rows_of(runs: Sequence[Run]) -> tuple[Row, ...]:
    """Both codes and their difference, over the seeds that both have; none where there is no such seed."""
    by_code = {
        code: {run.seed: run for run in runs if run.code == code} for code in ("released", "prunebench")
    }
    seeds = sorted(by_code["released"].keys() & by_code["prunebench"].keys())
    if not seeds:
        return ()

    def means(of: Callable[[int, str], float]) -> dict[str, Interval]:
        return {name: mean_interval([of(seed, name) for seed in seeds]) for name in VALUES}

    released, own = by_code["released"], by_code["prunebench"]
    difference = means(lambda seed, name: getattr(own[seed], name) - getattr(released[seed], name))
    within = all(abs(difference[name].mean) <= limit for name, limit in LIMITS.items())
    return (
        Row("as released", **means(lambda seed, name: getattr(released[seed], name))),
        Row(METHOD, **means(lambda seed, name: getattr(own[seed], name))),
        Row("difference, points", **difference, verdict="yes" if within else "no"),
    )


def comparison_markdown(runs: Sequence[Run]) -> str:
    """The table, a group a task and schedule, with what its numbers mean."""
    groups = []
    for setting in sorted({run.setting for run in runs}):
        task, mining, pretrain, mask, finetune, batch, arithmetic = setting
        members = [run for run in runs if run.setting == setting]
        rows = rows_of(members)
        if rows:
            seeds = sorted(
                {run.seed for run in members if run.code == "released"}
                & {run.seed for run in members if run.code == "prunebench"}
            )
            words = (
                f"{task}, {fmt.listed('seed', seeds)}; steps: mining {mining}, pretraining {pretrain}, mask {mask}, "
                f"fine-tuning {finetune}; {batch} a step, {arithmetic}"
            )
            groups.append(RowGroup(rows, words))
    if not groups:
        return "No pairs of runs yet."
    unbiased, sparsity = (round(100 * LIMITS[name]) for name in ("unbiased", "sparsity"))
    return "\n\n".join(
        (
            f"Mean ± half-width of the 95 % t-interval over seeds; differences are `{METHOD}` minus released, paired "
            f"by seed. Limits, of the mean difference: {unbiased} points unbiased, {sparsity} points of sparsity.",
            markdown_table(Table(COLUMNS, tuple(groups))),
        )
    )


# Files


def runs_csv(runs: Iterable[Run]) -> str:
    """The runs as CSV, sorted, a run a line, shares at six decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Run)]
    writer.writerow(names)
    for run in sorted(runs, key=lambda run: (run.setting, run.seed, run.code)):
        values = (getattr(run, name) for name in names)
        writer.writerow([round(value, 6) if isinstance(value, float) else value for value in values])
    return text.getvalue()


def read_runs(path: Path) -> list[Run]:
    """The runs that rest in a file of `runs_csv`; none where there is no file."""
    if not path.is_file():
        return []
    kinds = {"str": str, "int": int, "float": float}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Run(**{field.name: kinds[str(field.type)](line[field.name]) for field in fields(Run)})
            for line in csv.DictReader(file)
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, keep each run at once, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    suite = load_suite(SUITE)
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(suite.seeds))
    for stage in fields(Schedule):
        parser.add_argument(f"--{stage.name}", type=int, help=f"in place of {getattr(SHORT, stage.name)}")
    parser.add_argument("--full", action="store_true", help=f"the steps of {SUITE}, 2,000 for the mask")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--data-root", type=Path, help="where MNIST is")
    parser.add_argument(
        "--out", type=Path, default=Path("results/dcwp-reference"), help="the project's own runs"
    )
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="its marked part is replaced; the CSV stands beside it"
    )
    parser.add_argument("--no-run", action="store_true", help="train nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe, mining = suite.recipe, suite.params[METHOD]["mining_steps"]
    whole = Schedule(mining, recipe["steps"], 2000, recipe["finetune_steps"], recipe["batch_size"])
    asked = {name: value for name in asdict(SHORT) if (value := getattr(options, name)) is not None}
    schedule = replace(whole if options.full else SHORT, **asked)
    arithmetic = resolve_precision(options.precision, torch.device("cpu"))
    numbers = options.page.with_suffix(".csv")
    runs = read_runs(numbers)
    todo = missing_runs(runs, options.task, options.seed, schedule, arithmetic)
    for task, seed, code in [] if options.no_run else todo:
        if code == "released":
            run = run_released(task, seed, schedule, options.data_root, arithmetic)
        else:
            run = run_own(task, seed, schedule, options.data_root, arithmetic, options.out)
        print(run, flush=True)
        runs.append(run)
        write_atomically(numbers, runs_csv(runs).encode())
    table = comparison_markdown(read_runs(numbers))
    print(table)
    page = fill_part(options.page.read_text(encoding="utf-8"), PART, table)
    write_atomically(options.page, page.encode())


if __name__ == "__main__":
    main()
