"""Entry point of `python -m trainer_loop.data`; the command is in cli/data.py."""

import sys

from trainer_loop.cli.data import main

if __name__ == "__main__":
    sys.exit(main())
