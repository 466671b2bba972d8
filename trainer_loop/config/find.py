"""Finds the file of `config=imdb.yaml` on the command line, or of `extends: base.yaml` in a config file."""

from difflib import get_close_matches
from pathlib import Path

from trainer_loop.config.values import shown
from trainer_loop.errors import UserError


def find_config(name: str, *, extended_by: Path | None = None) -> Path:
    """Find the file of `config=name`, or of `extends: name` in another file.

    Searched in this order: next to the file that extends it (`extended_by`), the name as given, ./configs, and the
    configs of the package. Raises UserError if there is no such file.
    """
    key = "config=" if extended_by is None else "extends: "
    shipped = shipped_dir()
    beside = [] if extended_by is None else [extended_by.parent]
    directories = [*beside, Path(), Path("configs"), shipped]
    places = list(dict.fromkeys(directory / name for directory in directories))  # one for an absolute path
    try:
        file = next((place for place in places if place.is_file()), None)
        run_config = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
    except OSError as error:
        raise UserError(f"{key}{shown(name)} cannot be read: {error.strerror}") from error
    if file is not None:
        return file
    if run_config is not None:
        raise UserError(f"{key}{name} is a directory; write {key}{Path(name) / 'config.yaml'}")
    stems = {path.stem for directory in (*beside, Path("configs"), shipped) for path in directory.glob("*.yaml")}
    close = get_close_matches(Path(name).stem, sorted(stems), n=1)
    raise UserError(
        f"{key}{name} is not there; looked for {', '.join(map(str, places))}; "
        f"shipped configs: {', '.join(sorted(path.name for path in shipped.glob('*.yaml'))) or 'none'}"
        + (f"; did you mean {key}{close[0]}.yaml?" if close else "")
    )


def shipped_dir() -> Path:
    """Return `configs/` of the installed package, or of the source tree if the package is installed from it."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
