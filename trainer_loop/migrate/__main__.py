"""`python -m trainer_loop.migrate`: the command is in cli/migrate.py."""

import sys

from trainer_loop.cli.migrate import main

if __name__ == "__main__":
    sys.exit(main())
