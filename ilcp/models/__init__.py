"""The two language models of a hand-off: loading, checks, identity, reading, prompting."""
