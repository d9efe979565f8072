"""Run specifications, records and the store that holds them."""
