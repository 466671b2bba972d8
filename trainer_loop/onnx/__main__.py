"""`python -m trainer_loop.onnx`: the command is in cli/onnx.py."""

import sys

from trainer_loop.cli.onnx import main

if __name__ == "__main__":
    sys.exit(main())
