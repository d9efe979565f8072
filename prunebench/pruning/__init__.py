"""score x distribution x schedule = masks: what matters, how much per layer, when."""
