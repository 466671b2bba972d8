"""`python -m trainer_loop.push`: the command is in cli/push.py."""

import sys

from trainer_loop.cli.push import main

if __name__ == "__main__":
    sys.exit(main())
