"""An exported model behind an address: `python -m trainer_loop.serve`."""
