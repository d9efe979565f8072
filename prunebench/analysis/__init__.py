"""What pruning did to uncertainty, dependence and bias: stored logits in, numbers and pages out."""
