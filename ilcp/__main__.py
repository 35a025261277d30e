"""``python -m ilcp`` is ``ilcp``."""

from ilcp.cli import main

main()
