"""What method files do that nobody thought of: each works, or fails its own run by name, and touches no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TASK, run_inline, tiny_suite
from torch import nn
from torch.nn.utils import parametrizations, prune

from prunebench.errors import MaskError, UsageError
from prunebench.methods.api import method
from prunebench.methods.criteria import criterion
from prunebench.methods.discovery import resolve_method
from prunebench.models import build_model
from prunebench.pruning.masks import apply_masks, count_zeros, make_masks, prunable, verify
from prunebench.results.record import RunRecord
from prunebench.submission import check_method
from prunebench.suites import Suite

HEAD = """
import os, sys
import torch
from torch import nn
from prunebench import criterion, method, Pruned
from prunebench.pruning.masks import apply_masks, make_masks, prunable

def magnitude_masks(model, sparsity):
    masks = make_masks({n: w.detach().abs() for n, w in prunable(model).items()}, sparsity)
    apply_masks(model, masks)
    return masks
"""


def criterion_file(folder: Path, body: str, name: str = "mine") -> str:
    path = folder / f"{name}.py"
    path.write_text(f'{HEAD}\n@criterion("{name}", cite="x")\ndef scores(weight, context):\n    {body}\n')
    return str(path)


def method_file(folder: Path, body: str, name: str = "mine") -> str:
    path = folder / f"{name}.py"
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    path.write_text(
        f'{HEAD}\n@method("{name}", cite="x")\nclass Mine:\n    def fit(self, experiment, sparsity):\n{lines}\n'
    )
    return str(path)


def run_one(path: str, out: Path, *others: str) -> dict[str, RunRecord]:
    _, records = run_inline(tiny_suite(path, *others), out)
    return {record.run_spec.method: record for record in records.values()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Magnitude's run with nothing before it in the process."""
    return run_one("magnitude", tmp_path_factory.mktemp("plain"))["magnitude"]


# Weights handed out


@pytest.mark.parametrize(
    "body",
    [
        "return weight.abs_()",
        "weight.zero_(); return torch.rand(weight.shape, generator=context.generator)",
        "weight.data.mul_(-2); return weight.abs()",
    ],
)
def test_a_criterion_that_works_in_place_leaves_the_model_alone(tmp_path: Path, body: str) -> None:
    signed = {}
    original = build_model("convnet-small", 10, seed=0)
    weights = {name: weight.detach().clone() for name, weight in prunable(original).items()}
    entry = resolve_method(criterion_file(tmp_path, body))
    from prunebench.methods.criteria import compute_scores

    score = entry.build(**entry.params).criterion  # type: ignore[attr-defined]
    signed = compute_scores(score, original, dict, torch.Generator().manual_seed(0))
    assert signed.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in prunable(original).items())


@pytest.mark.slow
def test_an_in_place_magnitude_is_magnitude(tmp_path: Path, plain: RunRecord) -> None:
    record = run_one(criterion_file(tmp_path, "return weight.abs_()"), tmp_path / "out")["mine"]
    assert record.outputs_sha256 == plain.outputs_sha256


EXTRA_ZEROS = """
model = experiment.dense_model()
masks = magnitude_masks(model, sparsity)
pruned = experiment.finetune(model, masks)
with torch.no_grad():
    {damage}
return pruned
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        "magnitude_masks(model, 0.97)",
        "model.head.weight.view(-1)[masks['head.weight'].view(-1).nonzero()[0]] = 0",
    ],
)
def test_weights_sparser_than_their_masks_fail_the_run(tmp_path: Path, damage: str) -> None:
    record = run_one(method_file(tmp_path, EXTRA_ZEROS.format(damage=damage)), tmp_path / "out")["mine"]
    assert record.status == "failed"
    assert "of the returned weights are not zero" in str(record.reason)


def test_a_layer_of_zeros_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(net).items()}
    nn.init.zeros_(net[1].weight)
    with pytest.raises(MaskError, match=r"^1\.weight: all its weights are zero"):
        count_zeros(net, verify(net, masks, None))


def test_a_chosen_sparsity_is_counted_in_the_weights() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False))
    masks = {"0.weight": torch.ones(4, 4, dtype=torch.bool)}
    with torch.no_grad():
        net[0].weight.view(-1)[:12] = 0
    report = verify(net, masks, None)
    assert (report.achieved, count_zeros(net, report).achieved) == (0.0, 0.75)
    assert count_zeros(net, report).by_layer == {"0.weight": 0.75}


# Ways out


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(0)",
        "sys.exit()",
        "sys.exit('tired')",
        "raise GeneratorExit",
        "raise BaseException('x')",
        "exit(0)",
    ],
)
def test_a_method_that_exits_fails_its_cell(tmp_path: Path, body: str) -> None:
    record = run_one(criterion_file(tmp_path, body), tmp_path / "out")["mine"]
    assert record.status == "failed"
    assert "method 'mine' called for the end of the process" in str(record.reason)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_exit_status_tells_of_a_method_that_exits(tmp_path: Path, workers: str) -> None:
    (tmp_path / "tiny.toml").write_text(
        f'tasks = ["{TASK}"]\nmethods = ["dense"]\nsparsities = [0.9]\nseeds = [0]\n'
        "[recipe]\nsteps = 6\nfinetune_steps = 3\nbatch_size = 32\n"
    )
    command = [sys.executable, "-W", "error", "-m", "prunebench.cli.main", "run", str(tmp_path / "tiny.toml")]
    options = ["--method", criterion_file(tmp_path, "sys.exit(0)"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *options, "--workers", workers], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "called for the end of the process" in done.stdout
    assert "ResourceWarning" not in done.stderr


def test_check_names_a_method_that_exits(tmp_path: Path) -> None:
    findings = check_method(criterion_file(tmp_path, "sys.exit(0)"))
    assert [finding.ok for finding in findings] == [True, False]
    assert "called for the end" in findings[-1].why
    (tmp_path / "early.py").write_text("import sys\nsys.exit(0)\n")
    (only,) = check_method(str(tmp_path / "early.py"))
    assert "cannot be imported: SystemExit" in only.why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return experiment.dense_model()", r"fit must return Pruned\(model, masks\), got Classifier"),
        ("return None", r"fit must return Pruned\(model, masks\), got NoneType"),
        ("m = experiment.dense_model(); return m, magnitude_masks(m, sparsity)", "got tuple"),
        ("return Pruned(experiment.dense_model().state_dict(), {})", "Pruned.model must be the network, got"),
        (
            "return Pruned(experiment.dense_model(), None)",
            "asked for sparsity 0.9: 16666 of 166656 weights, but",
        ),
        (
            "m = experiment.dense_model(); k = magnitude_masks(m, sparsity)\n"
            "return Pruned(m, {n: v.numpy() for n, v in k.items()})",
            "Pruned.masks must be bool tensors",
        ),
    ],
)
def test_what_fit_must_return(tmp_path: Path, body: str, message: str) -> None:
    import re

    record = run_one(method_file(tmp_path, body), tmp_path / "out")["mine"]
    assert record.status == "failed"
    assert re.search(message, str(record.reason)), record.reason


# Names and settings


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "../../evil",
        "a b",
        "x" * 65,
        "x" * 100_000,
        "a\nb",
        "\x1b[31mred",
        "\u202egnp",
        "ma\u0308",
        "-x",
        "..",
        "a|b",
        "<b>",
        3,
    ],
)
def test_names_that_are_refused(name: Any) -> None:
    for make in (lambda: criterion(name, cite="x")(lambda w, c: w), lambda: method(name, cite="x")(Fits)):
        with pytest.raises(
            UsageError, match=r"a name has at most 64 letters, digits, '-', '_', '\.' and '\+'"
        ) as caught:
            make()
        assert str(caught.value).isascii()
        assert len(str(caught.value)) < 300


class Fits:
    def fit(self, experiment: Any, sparsity: float) -> None: ...


@pytest.mark.parametrize("name", ["a", "A-b_c.d+e", "2to4", "x" * 64, "_mine"])
def test_names_that_are_names(name: str) -> None:
    assert criterion(name, cite="x")(lambda w, c: w).name == method(name, cite="x")(Fits).name == name


@pytest.mark.parametrize(
    "value",
    [
        "float('inf')",
        "float('-inf')",
        "float('nan')",
        "1 + 2j",
        "{1}",
        "'a\\x1b'",
        "'x' * 300",
        "(1, float('inf'))",
        "len",
    ],
)
def test_a_setting_that_names_no_run_is_a_usage_error(tmp_path: Path, value: str) -> None:
    text = f"{HEAD}\nfrom dataclasses import dataclass\n@method('mine', cite='x')\n@dataclass(frozen=True)\n"
    text += "class Mine:\n"
    text += f"    rate: object = {value}\n    def fit(self, experiment, sparsity): ...\n"
    if value == "{1}":
        text = text.replace("rate: object = {1}", "rate: object = frozenset({1})")
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UsageError, match="setting rate of mine: want a finite number"):
        resolve_method(str(tmp_path / "mine.py"))


def test_a_setting_of_a_suite_is_checked_too() -> None:
    with pytest.raises(UsageError, match="setting initial of magnitude: want a finite number"):
        resolve_method("magnitude").with_params({"initial": float("nan")})


def test_a_source_is_one_line() -> None:
    with pytest.raises(UsageError, match="cite its source in one line"):
        method("mine", cite="a\nb")(Fits)


# Models of other libraries

TORCH_PRUNE = """
import torch.nn.utils.prune as prune
model = experiment.dense_model()
layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
masks = {n + ".weight": m.weight_mask.bool() for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
experiment.train(model, steps=3, name="x")
torch.cat([w.view(-1) for w in model.parameters()])
return Pruned(model, masks)
"""
WRAPPED = """
model = experiment.dense_model()
masks = magnitude_masks(model, sparsity)
net = {wrapped}
budget = dict(steps=experiment.recipe.finetune_steps, lr=experiment.recipe.finetune_lr)
experiment.train(net, name="dense/sparse", masks=masks, **budget)
assert list(prunable(net)) == list(masks)
apply_masks(net, masks)
return Pruned(net, masks)
"""


def test_torch_s_own_pruning_runs(tmp_path: Path) -> None:
    record = run_one(method_file(tmp_path, TORCH_PRUNE), tmp_path / "out")["mine"]
    assert record.status == "ok", record.traceback
    assert record.sparsity is not None
    assert record.sparsity.achieved == pytest.approx(0.9, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapped",
    [
        "model",
        'torch.compile(model, backend="eager")',
        "nn.DataParallel(model)",
        'nn.DataParallel(torch.compile(model, backend="eager"))',
        'setattr(model, "body", torch.compile(model.body, backend="eager")) or model',
    ],
)
def test_wrapped_networks_train_as_bare_ones(tmp_path: Path, plain: RunRecord, wrapped: str) -> None:
    record = run_one(method_file(tmp_path, WRAPPED.format(wrapped=wrapped)), tmp_path / "out")["mine"]
    assert record.status == "ok", record.traceback
    if "compile" not in wrapped:
        assert record.outputs_sha256 == plain.outputs_sha256


def test_masks_of_no_weight_are_named(tmp_path: Path) -> None:
    body = "masks = {'body.9.weight': torch.ones(1)}\n"
    body += "experiment.train(experiment.dense_model(), steps=1, name='x', masks=masks)"
    record = run_one(method_file(tmp_path, body), tmp_path / "out")["mine"]
    assert str(record.reason).startswith(
        "body.9.weight: no convolution or linear weight of this name; there are"
    )


@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", nn.Tanh()) and layer,
    ],
)
def test_masks_on_a_computed_weight_say_so(compute: Any) -> None:
    net = nn.Sequential(compute(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 3))
    masks = make_masks({name: weight.detach().abs() for name, weight in prunable(net).items()}, 0.5)
    with pytest.raises(MaskError, match=r"^0\.weight: the weight is computed"):
        apply_masks(net, masks)
    if prune.is_pruned(net):
        return
    with pytest.raises(MaskError, match=r"^0\.weight: the weight is computed"):
        verify(net, masks, 0.5)


def test_tied_weights_are_one_parameter() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    net[2].weight = nn.Parameter(net[0].weight.detach().T)  # shares its numbers, transposed
    assert list(prunable(net)) == ["0.weight", "3.weight"]
    masks = make_masks({name: weight.detach().abs() for name, weight in prunable(net).items()}, 0.5)
    apply_masks(net, masks)
    assert verify(net, masks, 0.5).achieved == 0.5
    flat = torch.zeros(72)
    apart = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for place, layer in enumerate(apart):
        layer.weight = nn.Parameter(flat[place * 36 : place * 36 + 36].view(6, 6))
    assert len(prunable(apart)) == 2, "two pieces of one buffer are two weights"


# Helpers and packages


def write_helper(folder: Path, factor: int, name: str = "helper_scores") -> None:
    (folder / f"{name}.py").write_text(f"def score(weight):\n    return {factor} * weight.abs()\n")


USES_HELPER = "from helper_scores import score\nfrom prunebench import criterion\n\n\n"
USES_HELPER += '@criterion("{name}", cite="x")\ndef mine(weight, context):\n    return score(weight)\n'


def scored(path: Path) -> list[float]:
    entry = resolve_method(str(path))
    return entry.build(**entry.params).criterion.score(torch.ones(1), None).tolist()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_helper_beside_the_file_is_found_and_counts(tmp_path: Path, plain: RunRecord) -> None:
    for name, factor in (("one", 2), ("two", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(USES_HELPER.format(name=name))
        write_helper(tmp_path / name, factor)
    one, two = tmp_path / "one" / "mine.py", tmp_path / "two" / "mine.py"
    assert (scored(one), scored(two), scored(one)) == ([2.0], [3.0], [2.0])
    before = resolve_method(str(one)).version
    write_helper(tmp_path / "one", 5)
    assert scored(one) == [5.0]
    assert resolve_method(str(one)).version != before
    write_helper(tmp_path / "one", 2)
    assert resolve_method(str(one)).version == before
    records = run_one(str(one), tmp_path / "out", str(two))
    assert records["one"].outputs_sha256 == records["two"].outputs_sha256 == plain.outputs_sha256


def test_a_file_alone_keeps_its_version(tmp_path: Path) -> None:
    import hashlib

    path = Path(criterion_file(tmp_path, "return weight.abs()"))
    write_helper(tmp_path, 2, "nobody_imports_this")
    assert resolve_method(str(path)).version == f"file-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def test_a_helper_of_a_helper_and_one_imported_late_count(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    text = USES_HELPER.format(name="mine").replace(
        "    return score", "    import late\n    return late.ONE * score"
    )
    path.write_text(text)
    (tmp_path / "helper_scores.py").write_text("from deeper import score\n")
    write_helper(tmp_path, 2, "deeper")
    (tmp_path / "late.py").write_text("ONE = 1\n")
    versions = {resolve_method(str(path)).version}
    assert scored(path) == [2.0]
    write_helper(tmp_path, 4, "deeper")
    versions.add(resolve_method(str(path)).version)
    (tmp_path / "late.py").write_text("ONE = 10\n")
    versions.add(resolve_method(str(path)).version)
    assert scored(path) == [40.0]
    assert len(versions) == 3


def test_helpers_do_not_stand_in_for_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not the real one')\n")
    path = Path(criterion_file(tmp_path, "import random; return weight.abs() * random.choice([2])"))
    assert scored(path) == [2.0]


@pytest.mark.slow
def test_a_package_is_a_method(tmp_path: Path) -> None:
    folder = tmp_path / "pbplug"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("from pbplug.core import mine\n")
    (folder / "core.py").write_text(
        USES_HELPER.format(name="mine").replace("helper_scores", "pbplug.deep.scores")
    )
    (folder / "deep" / "__init__.py").write_text("")
    write_helper(folder / "deep", 2, "scores")
    assert scored(folder) == [2.0]
    versions = {resolve_method(str(folder)).version}
    write_helper(folder / "deep", 3, "scores")
    versions.add(resolve_method(str(folder)).version)
    assert scored(folder) == [3.0]
    (folder / "table.csv").write_text("1,2\n")
    versions.add(resolve_method(str(folder)).version)
    assert len(versions) == 3, "every file of a package counts"
    assert all(finding.ok for finding in check_method(str(folder)))


@pytest.mark.slow
def test_a_helper_is_found_in_worker_processes(tmp_path: Path) -> None:
    from prunebench.api import execute_plan, make_plan

    (tmp_path / "mine.py").write_text(USES_HELPER.format(name="mine"))
    write_helper(tmp_path, 2)
    suite: Suite = tiny_suite(str(tmp_path / "mine.py"))
    outcome = execute_plan(make_plan(suite, out=tmp_path / "out"), workers=1)
    assert (outcome.ok, outcome.failed) == (2, 0)


# What one method leaves for the next

POLLUTIONS = {
    "mkldnn": "torch.backends.mkldnn.enabled = False",
    "denormals": "torch.set_flush_denormal(True)",
    "dtype": "torch.set_default_dtype(torch.float64)",
    "grad mode": "torch.set_grad_enabled(False)",
    "device": "torch.set_default_device('meta')",
    "threads": "torch.set_num_threads(2)",
    "seeds": "torch.manual_seed(1)",
    "deterministic": "torch.use_deterministic_algorithms(True)",
    "matmul": "torch.set_float32_matmul_precision('medium')",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "anomaly": "torch.autograd.set_detect_anomaly(True)",
    "hooks": "torch.nn.modules.module.register_module_forward_hook(lambda m, x, y: y * 0)",
    "many, and an error": "torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False); 1 / 0",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", POLLUTIONS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_a_method_leaves_the_next_one_as_it_would_be(tmp_path: Path, plain: RunRecord, what: str) -> None:
    path = criterion_file(tmp_path, f"{POLLUTIONS[what]}; return weight.detach().abs()")
    records = run_one(path, tmp_path / "out", "magnitude")
    assert records["magnitude"].outputs_sha256 == plain.outputs_sha256
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_numbers_from_numpy_and_python_are_seeded(tmp_path: Path) -> None:
    body = "import random; import numpy as np; drawn = torch.from_numpy(np.random.rand(*weight.shape)); "
    body += "return weight.abs() * (random.random() + drawn)"
    path = criterion_file(tmp_path, body)
    one, two = (run_one(path, tmp_path / name)["mine"].outputs_sha256 for name in ("one", "two"))
    assert one == two is not None


@pytest.mark.slow
def test_images_changed_in_place_fail_that_run_alone(tmp_path: Path, plain: RunRecord) -> None:
    body = "experiment.train_split.images._bytes[:, :, :, 0] = 0\nm = experiment.dense_model()\n"
    body += "return experiment.finetune(m, magnitude_masks(m, sparsity))"
    records = run_one(method_file(tmp_path, body), tmp_path / "out", "magnitude")
    assert "changed the images in place" in str(records["mine"].reason)
    assert records["magnitude"].outputs_sha256 == plain.outputs_sha256


def test_an_error_s_text_is_cut_and_cleaned(tmp_path: Path) -> None:
    record = run_one(
        criterion_file(tmp_path, "raise ValueError('\\x1b[31m' + 'x' * 100_000)"), tmp_path / "out"
    )["mine"]
    assert len(str(record.reason)) < 2000
    assert "\x1b" not in str(record.reason)
    assert "characters left out" in str(record.reason)
    assert len(str(record.traceback)) < 20_000


@pytest.mark.slow
def test_garbage_among_a_worker_s_events_fails_the_cell(tmp_path: Path) -> None:
    from prunebench.api import execute_plan, make_plan

    body = "import os\nfor fd in range(3, 40):\n    try: os.write(fd, b'garbage{\\n')\n    except OSError: pass\n"
    body += "return None"
    outcome = execute_plan(
        make_plan(tiny_suite(method_file(tmp_path, body)), out=tmp_path / "out"), workers=1
    )
    assert (outcome.ok, outcome.failed) == (1, 1)
