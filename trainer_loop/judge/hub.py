"""Whether the run may push where `hub.push` says, asked by process 0 alone: the hub counts such questions."""

from trainer_loop.config.fields import Config
from trainer_loop.parallel.processes import process_index_from_environment
from trainer_loop.record.hub_access import check_access, push_command
from trainer_loop.record.logs import Console


def check_hub(config: Config, console: Console) -> list[str]:
    """What is wrong with the name, the token or the right to write; nothing is asked where the run pushes nothing."""
    hub = config.hub
    if hub.push is None or hub.every == "never" or process_index_from_environment() > 0:
        return []
    later = f"set hub.every=never, and push later where there is network: {push_command(config.run_dir, hub.push)}"
    place = f"hub.push: {hub.push}"
    problems, notes = check_access(hub.push, private=hub.private, place=place, later=later)
    for note in notes:
        console.warn(f"{place}: {note}")
    return problems
