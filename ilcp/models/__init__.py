"""The two language models of a hand-off: loaded, recognised, read, prompted."""
