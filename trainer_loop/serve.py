"""`python -m trainer_loop.serve`: the command is in cli/serve.py."""

import sys

from trainer_loop.cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
