"""What a researcher changes, each in a folder that runs: see docs/customise.md."""
