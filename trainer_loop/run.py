"""`python -m trainer_loop.run`: the command is in cli/run.py."""

import sys

from trainer_loop.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
