"""Benchmarks of speed and memory, side by side in one run; each module is a command, `python -m benchmarks.NAME`."""
