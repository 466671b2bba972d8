"""`python -m trainer_loop.checkpoints`: the command is in cli/checkpoints.py."""

import sys

from trainer_loop.cli.checkpoints import main

if __name__ == "__main__":
    sys.exit(main())
