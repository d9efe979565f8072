"""Own weights and predictions: the metrics that a run of the same logits has, and what does not fit, named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from prunebench.cli.main import app
from prunebench.errors import DataError, PruneBenchError, UsageError
from prunebench.models import build_model
from prunebench.runner import stored
from prunebench.runner.evaluate import TaskData, measure_outputs
from prunebench.runner.stored import Draws
from prunebench.submission.evaluation import evaluate_predictions, evaluate_weights, list_weights

TASK = "colored-digits@2pct"


@pytest.fixture(scope="module")
def data() -> TaskData:
    return Draws(None).draw(TASK, 0)


@pytest.fixture(scope="module")
def logits(data: TaskData) -> dict[str, Tensor]:
    """Logits that are right more often than not."""
    generator = torch.Generator().manual_seed(3)
    return {
        split: torch.randn(len(data.labels.y[split]), 10, generator=generator)
        + 2 * torch.nn.functional.one_hot(data.labels.y[split], 10)
        for split in ("val", "test")
    }


def weights_of(name: str, seed: int) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in build_model(name, 10, seed=seed).state_dict().items()}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["evaluate", *words], env={"COLUMNS": "160"})


# --- weights -----------------------------------------------------------------------------------------------


def test_a_folder_of_weights_has_the_metrics_of_runs(tmp_path: Path, data: TaskData) -> None:
    for seed in (1, 2):
        save_file(weights_of("convnet-small", seed), tmp_path / f"net{seed}.safetensors")
    found = list(evaluate_weights(list_weights(tmp_path, TASK)))
    assert [(each.name, each.model, each.evidence) for each in found] == [
        (f"net{seed}", "convnet-small", "re-evaluated") for seed in (1, 2)
    ]
    for seed, each in zip((1, 2), found):
        _, groups, metrics, validation = measure_outputs(build_model("convnet-small", 10, seed=seed), data)
        assert each.groups == groups
        assert each.metrics == pytest.approx(metrics, nan_ok=True)
        assert each.validation == pytest.approx(validation, nan_ok=True)
    done = run("--weights", str(tmp_path), "--task", TASK, "--json")
    values = json.loads(done.output)
    assert [each["name"] for each in values] == ["net1", "net2"]
    assert values[0]["metrics"]["conflicting"] == pytest.approx(found[0].metrics["conflicting"])
    shown = run("--weights", str(tmp_path), "--task", TASK)
    assert shown.exit_code == 0, shown.output
    for words in ("net1", "net2", "re-evaluated", "Bias-conflicting accuracy", "5 of 100 groups", "label "):
        assert words in shown.output, words
    assert run("--weights", str(tmp_path), "--task", TASK, "--groups").output.count("conflicting (") == 90


def test_a_list_names_networks_models_and_draws(tmp_path: Path) -> None:
    save_file(weights_of("convnet-small@0.5", 1), tmp_path / "a.safetensors")
    save_file(weights_of("convnet-small", 1), tmp_path / "b.safetensors")
    (tmp_path / "networks.toml").write_text(
        f'[[networks]]\nfile = "a.safetensors"\nname = "narrow"\nmodel = "convnet-small@0.5"\ntask = "{TASK}"\n'
        f'seed = 4\n[[networks]]\nfile = "b.safetensors"\ntask = "{TASK}"\n'
    )
    found = list(evaluate_weights(list_weights(tmp_path)))
    assert [(each.name, each.model, each.seed) for each in found] == [
        ("narrow", "convnet-small@0.5", 4), ("b", "convnet-small", 0),
    ]  # fmt: skip


def test_removed_channels_are_taken_where_the_list_says_so(tmp_path: Path) -> None:
    save_file(weights_of("convnet-small@0.5", 1), tmp_path / "a.safetensors")
    entry = f'[[networks]]\nfile = "a.safetensors"\ntask = "{TASK}"\nmodel = "convnet-small"\n'
    (tmp_path / "networks.toml").write_text(entry)
    with pytest.raises(DataError, match=r"body\.0\.weight is \[16, 3, 4, 4\], the network's is \[32, 3"):
        list(evaluate_weights(list_weights(tmp_path)))
    (tmp_path / "networks.toml").write_text(f"{entry}channels_removed = true\n")
    (found,) = evaluate_weights(list_weights(tmp_path))
    assert found.weights == sum(
        value.numel() for value in build_model("convnet-small@0.5", 10, seed=0).parameters()
    )


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ({"head.weight": (10, 3)}, r"a\.safetensors: its network cannot be evaluated: .*shapes"),
        ({"body.0.weight": (5, 3, 4, 4)}, "its network cannot be evaluated: .*running_mean"),
        ({"head.weight": (4, 128), "head.bias": (4,)}, "its head has 4 outputs, want 10"),
    ],
)
def test_removed_channels_that_do_not_fit_each_other_are_named(
    left: dict[str, tuple[int, ...]], says: str, tmp_path: Path
) -> None:
    state = weights_of("convnet-small", 1)
    for name, shape in left.items():
        state[name] = state[name][tuple(map(slice, shape))].contiguous()
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "networks.toml").write_text(
        f'[[networks]]\nfile = "a.safetensors"\ntask = "{TASK}"\nchannels_removed = true\n'
    )
    with pytest.raises(DataError, match=says):
        list(evaluate_weights(list_weights(tmp_path)))


LISTS: dict[str, tuple[str, str]] = {
    "unknown key": ('[[networks]]\nfile = "a.safetensors"\nmodle = "x"\n', "unknown key .*did you mean model"),
    "no file": ('[[networks]]\nname = "x"\n', "want the name of a file in this folder"),
    "elsewhere": ('[[networks]]\nfile = "../a.safetensors"\n', "want the name of a file in this folder"),
    "no list": ('networks = "a.safetensors"\n', "want `networks`, a list of tables"),
    "no TOML": ("[[networks\n", "networks.toml: cannot be read"),
    "of another kind": ('[[networks]]\nfile = "a.safetensors"\nseed = "1"\n', "seed: want int, got '1'"),
    "twice": (2 * f'[[networks]]\nfile = "a.safetensors"\ntask = "{TASK}"\n', "two networks are called 'a'"),
    "no flag": ('[[networks]]\nfile = "a.safetensors"\nchannels_removed = "yes"\n', "channels_removed: want bool, got"),
    "no name of a file": ('[[networks]]\nfile = "a\\u0000.safetensors"\n', "want the name of a file in this folder"),
    "another form": ('[[networks]]\nfile = "a.onnx"\n', "want .safetensors, as `export --to safetensors`"),
    "below 0": (f'[[networks]]\nfile = "a.safetensors"\ntask = "{TASK}"\nseed = -1\n', "seed -1: want 0 to 99"),
    "no test split": (f'[[networks]]\nfile = "a.safetensors"\ntask = "{TASK}"\nseed = 100\n', "want 0 to 99"),
    "no task": ('[[networks]]\nfile = "a.safetensors"\n', "of which task. Give --task"),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_lists_that_cannot_be_are_usage_errors(case: str, tmp_path: Path) -> None:
    text, says = LISTS[case]
    (tmp_path / "networks.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        list_weights(tmp_path)


def test_folders_without_weights(tmp_path: Path) -> None:
    for folder, says in ((tmp_path / "none", "no such folder"), (tmp_path, "no .safetensors files")):
        with pytest.raises(UsageError, match=says):
            list_weights(folder, TASK)
    with pytest.raises(UsageError, match="evaluate what"):
        CliRunner().invoke(app, ["evaluate"], catch_exceptions=False)


def test_the_first_wrong_key_of_a_file_is_named(tmp_path: Path) -> None:
    state = weights_of("convnet-small", 1)
    for change, says in (
        ({"head.bias": None, "body.3.weight": None}, "body.3.weight is missing"),
        ({"head.weight": torch.zeros(9, 128)}, r"head\.weight is \[9, 128\], the network's is \[10, 128\]"),
        ({"extra.weight": torch.zeros(1)}, r"extra\.weight has no place in the network"),
        ({"head.bias": torch.full((10,), float("nan"))}, r"head\.bias holds values that are not finite"),
    ):
        values = {key: value for key, value in {**state, **change}.items() if value is not None}
        save_file(values, tmp_path / "net.safetensors")
        done = run("--weights", str(tmp_path), "--task", TASK)
        assert isinstance(done.exception, DataError)
        with pytest.raises(DataError, match=says):
            raise done.exception
    save_file({**state, "head.bias": torch.full((10,), 1e30)}, tmp_path / "net.safetensors")
    with pytest.raises(
        DataError, match=r"net\.safetensors: its network cannot be evaluated: logits: .*not finite"
    ):
        list(evaluate_weights(list_weights(tmp_path, TASK)))
    (tmp_path / "net.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(DataError, match=r"not a whole \.safetensors file"):
        list(evaluate_weights(list_weights(tmp_path, TASK)))


# --- predictions -------------------------------------------------------------------------------------------


def save_csv(path: Path, values: Tensor, heading: str = "") -> Path:
    rows = [",".join(map(str, row)) for row in values.tolist()]
    path.write_text("\n".join([heading] * bool(heading) + rows) + "\n")
    return path


def test_predictions_have_the_metrics_of_their_logits(
    tmp_path: Path, data: TaskData, logits: dict[str, Tensor]
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({f"{split}_logits": values for split, values in logits.items()}, path, metadata={"task": TASK})
    found = evaluate_predictions(path)
    stored = {split: values.half().float() for split, values in logits.items()}
    wanted = data.labels.summary(stored["test"], "test", stored["val"])[1]
    assert found.metrics == pytest.approx(wanted, nan_ok=True)
    assert (found.evidence, found.task, found.seed, found.weights) == ("unverified weights", TASK, 0, None)
    done = run("--predictions", str(path))
    assert done.exit_code == 0, done.output
    assert "unverified weights: mine: predictions alone; nothing of a network was seen" in done.output


def test_logits_of_the_test_split_alone_will_do(tmp_path: Path, logits: dict[str, Tensor]) -> None:
    """As safetensors and as CSV, with and without headings: the metrics that need no validation logits."""
    both, one = tmp_path / "both.safetensors", tmp_path / "one.safetensors"
    save_file({f"{split}_logits": values for split, values in logits.items()}, both)
    save_file({"test_logits": logits["test"]}, one)
    whole, alone = (evaluate_predictions(path, TASK) for path in (both, one))
    assert {*alone.metrics} <= {*whole.metrics}
    assert {"plain", "conflicting", "worst_group"} <= {*alone.metrics}
    assert alone.validation == {}
    for name, heading in (("a.csv", ""), ("b.csv", ",".join(f"class {k}" for k in range(10)))):
        found = evaluate_predictions(save_csv(tmp_path / name, logits["test"], heading), TASK)
        assert found.metrics == pytest.approx(alone.metrics, nan_ok=True)
        assert found.groups == alone.groups


Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
DAMAGED: dict[str, tuple[Change, str]] = {
    "unknown tensor": (lambda v: {**v, "logit": v["test_logits"] + 1}, "unknown tensor .*did you mean val_logits or"),
    "no test split": (lambda v: {"val_logits": v["test_logits"]}, "holds no test_logits"),
    "too few": (lambda v: {"test_logits": v["test_logits"][1:]}, r"want floating-point numbers of shape \(\d+, 10\)"),
    "too wide": (lambda v: {"test_logits": v["test_logits"].repeat(1, 2)}, r"found \(\d+, 20\) torch.float32"),
    "integers": (lambda v: {"test_logits": v["test_logits"].long()}, "found .* torch.int64"),
    "nan": (
        lambda v: {"test_logits": v["test_logits"].index_fill(0, torch.tensor([7, 9]), float("nan"))},
        "not all are finite in float16, the first in row 7",
    ),
    "too large for float16": (lambda v: {"test_logits": v["test_logits"] * 1e6}, "not all are finite in float16"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_predictions_that_do_not_fit_are_named(case: str, tmp_path: Path, logits: dict[str, Tensor]) -> None:
    change, says = DAMAGED[case]
    path = tmp_path / "mine.safetensors"
    save_file(change({"test_logits": logits["test"]}), path)
    with pytest.raises(UsageError, match=says):
        evaluate_predictions(path, TASK)


CSVS: dict[str, tuple[Callable[[str], str], str]] = {
    "ragged": (lambda text: text + "1,1\n", r"line \d+ has 2 columns, the first has 10"),
    "no number": (lambda text: text + ",".join(["1"] * 9 + ["one"]) + "\n", r"line \d+: 'one' is no number"),
    "nan": (lambda text: ",".join(["nan"] * 10) + text[text.index("\n") :], "the first in row 0"),
    "a row less": (lambda text: text[text.index("\n") + 1 :], "want floating-point numbers of shape"),
    "empty": (lambda _: "", "holds no rows of logits"),
    "headings alone": (lambda _: "a,b\n", "holds no rows of logits"),
    "bytes": (lambda _: "\udcff", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", CSVS)
def test_tables_of_logits_that_do_not_fit_are_named(
    case: str, tmp_path: Path, logits: dict[str, Tensor]
) -> None:
    change, says = CSVS[case]
    path = save_csv(tmp_path / "mine.csv", logits["test"])
    path.write_text(change(path.read_text()), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=says):
        evaluate_predictions(path, TASK)


def test_a_header_that_says_otherwise_and_files_that_are_none(
    tmp_path: Path, logits: dict[str, Tensor]
) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"test_logits": logits["test"]}, path, metadata={"task": TASK, "seed": "0"})
    with pytest.raises(
        UsageError, match="its header says task colored-digits@2pct, --task says colored-digits@5pct"
    ):
        evaluate_predictions(path, "colored-digits@5pct")
    with pytest.raises(UsageError, match="its header says seed 0, --seed says 3"):
        evaluate_predictions(path, TASK, 3)
    for seed, says in (("9" * 5000, "want a whole number"), ("100", "seed 100: want 0 to 99")):
        save_file({"test_logits": logits["test"]}, path, metadata={"task": TASK, "seed": seed})
        with pytest.raises(UsageError, match=says):
            evaluate_predictions(path)
    save_file({"test_logits": logits["test"]}, path)
    with pytest.raises(UsageError, match="seed 100: want 0 to 99"):
        evaluate_predictions(path, TASK, 100)
    with pytest.raises(UsageError, match="of which task"):
        evaluate_predictions(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match="no safetensors file"):
        evaluate_predictions(path, TASK)
    with pytest.raises(PruneBenchError, match=r"mine\.csv: cannot be read"):
        evaluate_predictions(tmp_path / "mine.csv", TASK)


def test_files_of_predictions_share_their_draw(
    tmp_path: Path, logits: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(*values: Any) -> TaskData:
        made.append(values[0].name)
        return TaskData(*values)

    monkeypatch.setattr(stored, "TaskData", counted)
    paths = [str(save_csv(tmp_path / f"{name}.csv", logits["test"])) for name in ("a", "b")]
    done = run("--predictions", paths[0], "--predictions", paths[1], "--task", TASK)
    assert done.exit_code == 0, done.output
    assert made == [TASK]


def test_attributes_need_validation_logits_for_their_thresholds(tmp_path: Path) -> None:
    data = Draws(None).draw("digit-attributes", 0)
    wide = {split: torch.zeros(data.labels.y[split].shape) for split in ("val", "test")}
    path = tmp_path / "mine.safetensors"
    save_file({"test_logits": wide["test"]}, path)
    with pytest.raises(UsageError, match="thresholds of attributes come from validation logits: give both"):
        evaluate_predictions(path, "digit-attributes")
    save_file({f"{split}_logits": values for split, values in wide.items()}, path)
    assert evaluate_predictions(path, "digit-attributes").metrics
