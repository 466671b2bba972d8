"""A training loop on Hugging Face Accelerate that you can read in one sitting, change, and trust."""

from trainer_loop.search_path import leave_out_current_directory

leave_out_current_directory()  # before any command imports what a file of the user's could hide
