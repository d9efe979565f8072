"""score x allocation x schedule = masks: what matters, how much per layer, when."""
