"""From a suite to records: plan, execute, evaluate, and do either again."""
