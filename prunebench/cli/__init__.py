"""The command line: verbs and words on the terminal, no logic."""
