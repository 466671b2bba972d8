"""Search for the best values of config keys: `python -m trainer_loop.search`."""
