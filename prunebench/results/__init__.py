"""Results: what was run, what it left, where that rests, and how it is committed and shared."""
