"""Which file a name means: `config=imdb.yaml` on the command line, or `extends: base.yaml` in a file."""

from difflib import get_close_matches
from pathlib import Path

from trainer_loop.config.values import shown
from trainer_loop.errors import UserError


def find_config(name: str, *, extended_by: Path | None = None) -> Path:
    """Find the file that `config=name`, or `extends: name` in another file, means.

    It is looked for beside the file that extends it (`extended_by`), then as given, in ./configs, and among the configs
    that come with the package. Raises UserError where it is not there.
    """
    key = "config=" if extended_by is None else "extends: "
    shipped = shipped_dir()
    beside = [] if extended_by is None else [extended_by.parent]
    directories = [*beside, Path(), Path("configs"), shipped]
    places = list(dict.fromkeys(directory / name for directory in directories))  # one for an absolute path
    try:
        found = next((place for place in places if place.is_file()), None)
        run_config = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
    except OSError as error:
        raise UserError(f"{key}{shown(name)} cannot be read: {error.strerror}") from error
    if found is not None:
        return found
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
    """`configs/` inside the installed package, or beside the package where it is installed from its sources."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
