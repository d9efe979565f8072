"""Former place of `metrics.predictability`, until its last importer has moved."""

from prunebench.metrics.predictability import bias_risk, bias_risks

__all__ = ["bias_risk", "bias_risks"]
