"""Analysis: stored logits in; uncertainty, dependence, bias and predictability under pruning out, as pages."""
