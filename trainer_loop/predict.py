"""`python -m trainer_loop.predict`: the command is in cli/predict.py."""

import sys

from trainer_loop.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
