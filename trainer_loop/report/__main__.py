"""`python -m trainer_loop.report runs/imdb`."""

import sys

from trainer_loop.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
