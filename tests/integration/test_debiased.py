"""Debiasing before any pruner: what it costs, that stages are shared, and that it changes what the pruner sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run_inline, tiny_suite

from prunebench.errors import UsageError
from prunebench.methods.debiased import DEBIASERS
from prunebench.methods.discovery import DEBIASER_NAMES, check_method_name, resolve_method


def test_names_and_settings_of_a_composition() -> None:
    assert tuple(DEBIASERS) == DEBIASER_NAMES
    check_method_name("gmp-pt+jtt")
    entry = resolve_method("gmp-pt+jtt").with_params({"jtt_upweight": 5.0, "events": 3})
    assert entry.name == "gmp-pt+jtt"
    built = entry.build(**entry.params)
    assert (built.settings["upweight"], built.base.params["events"]) == (5.0, 3)  # type: ignore[attr-defined]
    for name, message in (
        ("magnitude+lfff", "unknown debiaser 'lfff': did you mean lff"),
        ("lff+jtt", "lff is no pruner to debias beforehand"),
        ("dense+lff", "dense is no pruner"),
        ("magnitude+lff+jtt", "unknown debiaser"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_method(name)


@pytest.mark.slow
def test_pruners_share_the_stage_of_their_debiaser(tmp_path: Path) -> None:
    names = ("magnitude", "magnitude+lff", "snip+lff", "magnitude+jtt", "magnitude+dcwp", "lff")
    suite = tiny_suite(*names, params={"magnitude+dcwp": {"dcwp_mining_steps": 12}})
    outcome, records = run_inline(suite, tmp_path)
    assert outcome.failed == 0, [record.reason for record in records.values() if record.status != "ok"]
    steps = {name: records[f"{name} 0.9 0"].cost.training_steps for name in names}  # type: ignore[union-attr]
    assert steps == {
        "magnitude": 12 + 6,
        "lff": 2 * 12 + 6,
        "magnitude+lff": 2 * 12 + 6,
        "snip+lff": 2 * 12 + 8 + 12 + 6,
        "magnitude+jtt": 3 + 12 + 6,
        "magnitude+dcwp": 12 + 12 + 6,
    }
    assert len({records[f"{name} 0.9 0"].outputs_sha256 for name in names}) == len(names)
    assert records["magnitude+jtt 0.9 0"].mining is not None
    assert len(list((tmp_path / "shared").glob("*.safetensors"))) == 4, "lff's stage once for three methods"
