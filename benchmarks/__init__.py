"""Speed and memory, measured side by side in one run; each module is one command, `python -m benchmarks.NAME`."""
