"""`python -m trainer_loop.search`: the command is in cli/search.py."""

import sys

from trainer_loop.cli.search import main

if __name__ == "__main__":
    sys.exit(main())
