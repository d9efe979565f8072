"""The command line: verbs, no logic. Heavy libraries are imported inside the verbs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from prunebench.cli.completion import (
    LISTINGS,
    complete_listing,
    complete_method,
    complete_model,
    complete_suite,
    complete_task,
)
from prunebench.cli.placement import (
    ArtifactsOption,
    CellsOption,
    ClusterOption,
    MemoryOption,
    ShardOption,
    choose_cluster,
    choose_shard,
)
from prunebench.cli.sharing import artifacts_app, results_app
from prunebench.cli.submission import submission_app

app = typer.Typer(
    name="prunebench",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

app.add_typer(results_app)
app.add_typer(artifacts_app)
app.add_typer(submission_app)

OutOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--out", help="Results folder (default: results/SUITE)."),
]
ResultsOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--results", help="The results folder (default: leaderboard/results, or the only one below results)."
    ),
]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--data-root", envvar="PRUNEBENCH_DATA", help="Where data sets lie."),
]

MetricOption = Annotated[
    list[Path],
    typer.Option(help="Your own metrics too: my_metric.py, with functions behind @metric (repeatable)."),
]
ModelOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="This model instead of the task's: a name, or your own my_net.py:FUNCTION.",
        autocompletion=complete_model,
    ),
]

DenseOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Your own trained network (.safetensors) as the dense model, for one task."),
]
SandboxOption = Annotated[
    bool,
    typer.Option(
        "--sandbox", help="Methods of files see no network, no data and no results (Linux; see doctor)."
    ),
]
TimeoutOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(min=0.1, help="End a method of a file after so many seconds; its run fails."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from prunebench import __version__

        typer.echo(f"prunebench {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What a pruned vision model costs its minorities, and what it really gains in speed."""


@app.command(epilog="Example: prunebench run quick --method magnitude --method dcwp --sparsity 0.9")
def run(  # noqa: PLR0913
    suite: Annotated[
        str,
        typer.Argument(
            help="A suite's name (see `prunebench ls suites`) or a TOML file.", autocompletion=complete_suite
        ),
    ],
    out: OutOption = None,
    data_root: DataOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Processes (default: one a core, or one a GPU; 0: this process)."),
    ] = None,
    task: Annotated[
        list[str],
        typer.Option(help="Run these tasks instead of the suite's.", autocompletion=complete_task),
    ] = [],  # noqa: B006
    method: Annotated[
        list[str],
        typer.Option(
            help="These methods instead of the suite's: names, or your own my_method.py.",
            autocompletion=complete_method,
        ),
    ] = [],  # noqa: B006
    sparsity: Annotated[list[float], typer.Option(help="These sparsities (share of zeros).")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="These seeds.")] = [],  # noqa: B006
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", help="METHOD.KEY=VALUE: a method's setting; VALUE,VALUE,... runs each (repeatable)."
        ),
    ] = [],  # noqa: B006
    model: ModelOption = None,
    metric: MetricOption = [],  # noqa: B006
    dense: DenseOption = None,
    sandbox: SandboxOption = False,
    timeout: TimeoutOption = None,
    shard: ShardOption = None,
    cluster: ClusterOption = None,
    cells_per_gpu: CellsOption = 1,
    cell_memory: MemoryOption = None,
    artifacts: ArtifactsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its time and disk, and stop.")
    ] = False,
    keep_models: Annotated[
        bool,
        typer.Option(help="Store pruned weights too: `retime` and `profile` can then measure them again."),
    ] = True,
) -> None:
    """Train, prune, measure and rank. The same command again resumes."""
    from prunebench.api import make_launcher, make_plan
    from prunebench.cli.own import use_own
    from prunebench.cli.progress import print_plan, run_with_progress
    from prunebench.suites import load_suite

    use_own(None, metric)
    chosen = load_suite(suite).narrowed(
        tasks=task, methods=method, sparsities=sparsity, seeds=seed, model=model
    )
    chosen = chosen.with_settings(settings)
    where = choose_cluster(cluster, cells_per_gpu, cell_memory, artifacts)
    plan = make_plan(
        chosen, out=out, data_root=data_root, device=device, keep_models=keep_models, dense=dense,
        sandbox=sandbox, timeout=timeout, cluster=where, shard=choose_shard(shard),
    )  # fmt: skip
    launcher = make_launcher(plan.context, workers, cluster=where, cells_per_gpu=cells_per_gpu)
    print_plan(plan, launcher.workers, every_run=dry_run)
    if not dry_run:
        raise typer.Exit(run_with_progress(plan, launcher))


@app.command("time", hidden=True)
@app.command(epilog="Example: prunebench retime --results results/quick --disturbed --wait 60")
def retime(
    results: Annotated[Path, typer.Option(help="The results folder, with the models that a run stored.")],
    data_root: DataOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    disturbed: Annotated[
        bool, typer.Option("--disturbed", help="Only those that a busy machine disturbed.")
    ] = False,
    wait: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0, help="Wait until the machine is quiet, at most so many minutes; then exit with 75."
        ),
    ] = None,
) -> None:
    """Measure the latency of stored models again: one by one, on a quiet machine or on another one."""
    from prunebench.cli.timing import time_with_progress

    raise typer.Exit(time_with_progress(results, data_root, device, disturbed=disturbed, wait=wait))


@app.command("score", hidden=True)
@app.command(epilog="Example: prunebench rescore results/quick --dry-run")
def rescore(
    results: Annotated[Path, typer.Argument(help="The results folder, with the logits that runs stored.")],
    data_root: DataOption = None,
    metric: MetricOption = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change and write nothing.")
    ] = False,
) -> None:
    """Compute all metrics of stored runs again from their logits, without training."""
    from prunebench.cli.own import use_own

    use_own(None, metric)
    from prunebench.cli.rescoring import score_with_progress

    raise typer.Exit(score_with_progress(results, data_root, dry_run=dry_run))


@app.command(epilog="Example: prunebench compare dcwp magnitude --task colored-digits@2pct --sparsity 0.9")
def compare(  # noqa: PLR0913
    first: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A method, or a run's id or the beginning of it.",
            autocompletion=complete_method,
        ),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="What to compare it with.", autocompletion=complete_method)
    ] = "dense-finetuned",
    results: ResultsOption = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of methods: on this task.", autocompletion=complete_task),
    ] = None,
    sparsity: Annotated[Optional[float], typer.Option(help="Of methods: at this sparsity.")] = None,  # noqa: UP045
    other_results: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where B is looked for (default: --results)."),
    ] = None,
    data_root: DataOption = None,
    tables: Annotated[
        bool, typer.Option("--all", help="Every table: also by sample for each pair of runs.")
    ] = False,
) -> None:
    """Which of two runs or methods is better, paired by sample and by seed."""
    from prunebench.cli.compare import Asked, print_comparison
    from prunebench.cli.listing import default_results

    found = results or default_results()
    asked = Asked((first, second), (found, other_results or found), task, sparsity, data_root)
    print_comparison(asked, every_table=tables)


@app.command(epilog="Example: prunebench analyze results/quick")
def analyze(
    results: Annotated[Path, typer.Argument(help="The results folder, with the logits that runs stored.")],
    data_root: DataOption = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where board and pages go (default: RESULTS/leaderboard)."),
    ] = None,
    task: Annotated[list[str], typer.Option(help="Only these tasks.")] = [],  # noqa: B006
) -> None:
    """What pruning did to uncertainty, dependence and bias: cards of the hypotheses, tables, plots, pages."""
    from prunebench.cli.progress import analyze_with_progress

    raise typer.Exit(analyze_with_progress(results, data_root, out, task))


@app.command("ls", epilog="Example: prunebench ls runs dcwp 0.9 --results results/quick")
def list_things(
    what: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar=f"[{'|'.join(LISTINGS)}]", autocompletion=complete_listing),
    ] = None,
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Only rows with all these words; a number must be a value."),
    ] = None,
    results: ResultsOption = None,
    data_root: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All values, as JSON.")] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="Of tasks: the table of groups, where the data are here.")
    ] = False,
) -> None:
    """List tasks, methods, suites or runs."""
    from prunebench.cli.listing import list_kind

    list_kind(what, words or [], results, data_root, as_json=as_json, groups=groups)


@app.command(epilog="Example: prunebench show 3f2a --results results/quick")
def show(
    run_id: Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")],
    results: ResultsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole record, as JSON.")] = False,
) -> None:
    """Show one run: settings, metrics, worst groups, cost by phase, traceback."""
    from prunebench.cli.showing import show_run

    show_run(run_id, results, as_json=as_json)


@app.command(epilog="Example: prunebench leaderboard --results results/quick --out results/quick/leaderboard")
def leaderboard(
    results: Annotated[
        list[Path],
        typer.Option(help="Results folders (repeatable)."),
    ] = [Path("leaderboard/results")],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Where the board goes.")] = Path("leaderboard"),
    readme: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also refill the marked parts of this file."),
    ] = None,
    diff: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Another results folder, say that of the last release: also say what changed since."
        ),
    ] = None,
) -> None:
    """Write the board (README.md and site/index.html) from records, and pages of stored analyses."""
    from prunebench.cli.progress import write_leaderboard

    raise typer.Exit(write_leaderboard(results, out, readme, diff))


@app.command(epilog="Example: prunebench board --results results/quick")
def board(
    out: Annotated[Path, typer.Option(help="The board's folder, as `leaderboard --out` wrote it.")] = Path(
        "leaderboard"
    ),
    results: ResultsOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open a browser.")] = True,
) -> None:
    """Look at the board: serve its page on this machine alone; built from results where it is not there."""
    from prunebench.cli.serving import serve_board

    serve_board(out, results, port, browser=browser)


@app.command(epilog="Example: prunebench reproduce colored-digits@2pct/dcwp/0.9/0 --run")
def reproduce(
    row: Annotated[str, typer.Argument(metavar="ROW", help="TASK/METHOD/SPARSITY[/SEED], or a run's id.")],
    results: ResultsOption = None,
    out: OutOption = None,
    data_root: DataOption = None,
    run: Annotated[bool, typer.Option("--run", help="Run it and compare with the committed record.")] = False,
) -> None:
    """The command that makes a row of the board again; with --run, whether it does."""
    from prunebench.cli.reproduction import reproduce

    raise typer.Exit(reproduce(row, results, out, data_root, run=run))


@app.command(epilog="Example: prunebench check my_method.py")
def check(
    path: Annotated[
        Path, typer.Argument(help="A method file (my_method.py) or name, or a folder of results.")
    ],
) -> None:
    """Run the contract suite on a method file, or validate records."""
    from prunebench.cli.progress import print_findings
    from prunebench.submission import check_path

    status = print_findings(path, check_path(path))
    if status == 0 and (path.suffix == ".py" or (path / "__init__.py").is_file()):
        typer.echo(f"next: prunebench run SUITE --method {path} --out results/{path.stem}")
    raise typer.Exit(status)


@app.command(epilog="Example: prunebench profile --model resnet18 --sparsity 0.9 --pattern block")
def profile(  # noqa: PLR0913
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A model or my_net.py:FUNCTION (default: that of --run, else convnet on a CPU, resnet18 on a GPU).",
            autocompletion=complete_model,
        ),
    ] = None,
    image: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Rows and columns of an image (default: 32)."),
    ] = None,
    batch: Annotated[
        list[int],
        typer.Option(
            help="Images of a batch (default: 64 on a CPU, 128 on a GPU); several: whole networks at each."
        ),
    ] = [],  # noqa: B006
    threads: Annotated[
        list[int],
        typer.Option(help="Threads of torch on the CPU (default: its own choice); several: at each."),
    ] = [],  # noqa: B006
    sparsity: Annotated[list[float], typer.Option(help="These sparsities (share of zeros).")] = [],  # noqa: B006
    pattern: Annotated[
        list[str],
        typer.Option(help="unstructured, block, filter, 2:4, or stored (the zeros of --run)."),
    ] = [],  # noqa: B006
    layer: Annotated[list[str], typer.Option(help="Only layers whose name contains this.")] = [],  # noqa: B006
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Time box; the rest is listed as left out (default: 3 on a CPU, 9 on a GPU)."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (bf16 on a GPU, fp32 on a CPU), fp32, bf16 or fp16.")
    ] = "auto",
    backend: Annotated[str, typer.Option(help="Of the sparse kernels: auto, triton or torch.")] = "auto",
    compile: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--compile/--no-compile", help="Measure torch.compile too (default: on a GPU)."),
    ] = None,
    repeats: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Timed calls of each implementation (default: 9 on a CPU, 50 on a GPU)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--run", help="Weights of a run: its id, its folder or a model.safetensors."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Where --run looks for an id.")] = Path("leaderboard/results"),
    out: Annotated[Path, typer.Option(help="Where page, figures, CSV and JSON go.")] = Path("profile"),
) -> None:
    """Measure sparse layers and networks on this machine against dense and the roofline."""
    from prunebench.cli.console import console
    from prunebench.cli.own import use_own
    from prunebench.models.names import ModelName

    model = use_own(model)
    if model is not None:
        ModelName.parse(model)  # a misspelt name is answered before torch is imported
    from prunebench.profile.run import ProfileSettings, profile_machine

    settings = ProfileSettings(
        model=model, image=image, batches=tuple(batch), threads=tuple(threads),
        sparsities=tuple(sparsity), patterns=tuple(pattern), layers=tuple(layer), minutes=minutes, device=device,
        precision=precision, backend=backend, compiled=compile, repeats=repeats, seed=seed, run=run,
        results=results, out=out, command=" ".join(["prunebench", *sys.argv[1:]]),
    )  # fmt: skip
    raise typer.Exit(profile_machine(settings, console))


@app.command(epilog="Example: prunebench evaluate --weights my_networks --task colored-digits@2pct")
def evaluate(  # noqa: PLR0913
    weights: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A folder of .safetensors files, each the weights of a network; networks.toml may name them."
        ),
    ] = None,
    predictions: Annotated[
        list[Path], typer.Option(help="Logits of the test split: .safetensors or .csv, a row an image.")
    ] = [],  # noqa: B006
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The task whose test split they are judged on.", autocompletion=complete_task),
    ] = None,
    model: ModelOption = None,
    metric: MetricOption = [],  # noqa: B006
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="The seed of the task's draw (default: 0)."),
    ] = None,
    data_root: DataOption = None,
    groups: Annotated[bool, typer.Option("--groups", help="Every group, not the worst alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All values, as JSON.")] = False,
) -> None:
    """Metrics and groups of your own weights or predictions, as runs get them; nothing is trained or recorded."""
    from prunebench.cli.own import use_own
    from prunebench.models.names import ModelName
    from prunebench.tasks.registry import find_family

    if task is not None:
        find_family(task)  # misspelt names are answered before torch is imported
    model = use_own(model, metric)
    if model is not None:
        ModelName.parse(model)
    from prunebench.cli.evaluation import evaluate_with_words

    raise typer.Exit(
        evaluate_with_words(
            weights, predictions, task, model, seed, data_root, as_json=as_json, groups=groups
        )
    )


@app.command(epilog="Example: prunebench export --results results/quick --method dcwp --engine all")
def export(  # noqa: PLR0913
    runs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[RUN_ID]...", help="Runs by id, or the beginning of it (default: all that fit)."
        ),
    ] = None,
    results: ResultsOption = None,
    task: Annotated[
        list[str], typer.Option(help="Only runs of these tasks.", autocompletion=complete_task)
    ] = [],  # noqa: B006
    method: Annotated[
        list[str], typer.Option(help="Only runs of these methods.", autocompletion=complete_method)
    ] = [],  # noqa: B006
    sparsity: Annotated[list[float], typer.Option(help="Only these sparsities; dense runs stay.")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Only these seeds.")] = [],  # noqa: B006
    to: Annotated[str, typer.Option(help="onnx, torch (torch.export) or safetensors.")] = "onnx",
    out: Annotated[Path, typer.Option(help="Where the files go.")] = Path("exported"),
    data_root: DataOption = None,
    images: Annotated[int, typer.Option(help="Validation images that outputs are compared on.")] = 256,
    engine: Annotated[
        list[str],
        typer.Option(
            help="Time them in turns in torch, folded, compile, graph (on a GPU), sparse, onnxruntime, openvino "
            "(these two on a CPU), or all (of them here)."
        ),
    ] = [],  # noqa: B006
    batch: Annotated[list[int], typer.Option(min=1, help="Images of a batch (default: 1, then 64).")] = [],  # noqa: B006
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 31,
    device: Annotated[
        str, typer.Option(help="Where engines run: cpu, cuda, or auto (files are written on the CPU).")
    ] = "cpu",
) -> None:
    """Write networks of runs as ONNX and compare outputs; with --engine, their latencies in every engine."""
    from prunebench.cli.listing import default_results

    found = results or default_results()
    from prunebench.cli.exporting import RunFilter, TimingSettings, export_with_progress

    asked = RunFilter(tuple(runs or ()), tuple(task), tuple(method), tuple(sparsity), tuple(seed))
    timing = TimingSettings(tuple(engine), tuple(batch) or (1, 64), threads, repeats, device)
    raise typer.Exit(
        export_with_progress(asked, found, out, data_root, form=to, images=images, timing=timing)
    )


@app.command(epilog="Example: prunebench doctor --kernels")
def doctor(
    data_root: DataOption = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Run every kernel beside torch and compare the results.")
    ] = False,
) -> None:
    """For what this machine is ready, and what the rest lacks; with --kernels, whether the kernels agree."""
    from prunebench.cli.diagnosis import compare_kernels, print_diagnosis

    if kernels:
        raise typer.Exit(compare_kernels())
    print_diagnosis(data_root)


def main() -> None:
    """Entry point: 0 done, 1 some run failed, 2 usage error, 130 interrupted."""
    from prunebench.errors import PruneBenchError, UsageError

    try:
        app()
    except PruneBenchError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        typer.secho("stopped; run the same command again to resume", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
