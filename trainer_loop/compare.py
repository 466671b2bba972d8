"""`python -m trainer_loop.compare`: the command is in cli/compare.py."""

import sys

from trainer_loop.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
