"""`python -m trainer_loop.predict model=runs/imdb text="..."`: new rows through an exported model.

One text prints its label and probability (a causal LM: its continuation); a file is written again with the same
rows, in the same order, plus label and probability (a causal LM: loss and perplexity of each text).
"""

import difflib
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trainer_loop.errors import UserError
from trainer_loop.record.run_dir import RunDir
from trainer_loop.runtime.quiet import quieten_loggers

USAGE = """\
python -m trainer_loop.predict model=runs/imdb text="I am super delighted."
python -m trainer_loop.predict model=runs/imdb file=new_reviews.csv output=judged.csv

  model=           a run directory, or the directory of a model that transformers can load
  text=            a text to predict
  text_pair=       its second text, where the model was trained on pairs
  file=            instead of text: rows to predict (.csv .tsv .json .jsonl .parquet .arrow .feather .txt)
  output=          where they go (.csv .tsv .json .jsonl .parquet); default: predictions/ in the run directory
  text_column=     column of the text in the file; default: the one the model was trained on
  pair_column=     column of the second text; default likewise
  max_new_tokens=  how far a causal LM continues a text; default 64
  trust_remote_code=true   lets Python code that came with the model run"""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    model: str
    text: str | None = None
    text_pair: str | None = None
    file: str | None = None
    output: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    max_new_tokens: int | None = None
    trust_remote_code: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    quieten_loggers()
    try:
        _predict(_read_arguments(arguments))
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_code
    return 0


def _read_arguments(arguments: list[str]) -> Request:
    """`key=value` arguments; raises UserError with all that is wrong with them."""
    names = [field.name for field in fields(Request)]
    given: dict[str, Any] = {}
    problems = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            problems.append(f"{argument}: arguments are key=value, such as model=runs/imdb; see --help")
        elif name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}=?" if close else ""
            problems.append(f"{argument}: unknown key {name}; allowed: {', '.join(names)}{hint}")
        else:
            given[name] = value
    if "model" not in given:
        problems.append("model= is missing: a run directory such as model=runs/imdb, or the directory of a model")
    if ("text" in given) == ("file" in given):
        problems.append('give either text="..." or file=new_rows.csv')
    if given.get("text") is not None and not given["text"].strip():
        problems.append("text= is empty")
    if "max_new_tokens" in given:
        if given["max_new_tokens"].isdecimal() and int(given["max_new_tokens"]) > 0:
            given["max_new_tokens"] = int(given["max_new_tokens"])
        else:
            problems.append(f"max_new_tokens={given['max_new_tokens']}: it must be a whole number from 1")
    if "trust_remote_code" in given:
        if given["trust_remote_code"] not in ("true", "false"):
            problems.append(f"trust_remote_code={given['trust_remote_code']}: allowed: true, false")
        given["trust_remote_code"] = given["trust_remote_code"] == "true"
    for name in ("output", "text_column", "pair_column"):
        if name in given and "text" in given:
            problems.append(f"{name}= goes with file=, not with text=")
    for name in ("text_pair", "max_new_tokens"):
        if name in given and "file" in given:
            problems.append(f"{name}= goes with text=, not with file=")
    output = given.get("output")
    if output is not None and Path(output).suffix.lower() not in _WRITERS:
        problems.append(f"output={output}: the file must end in {', '.join(_WRITERS)}")
    if problems:
        raise UserError(problems)
    return Request(**given)


def _predict(request: Request) -> None:
    model_dir = _find_model(request.model)

    from trainer_loop.predictor import Predictor  # torch and transformers: seconds

    predictor = Predictor.load(model_dir, trust_remote_code=request.trust_remote_code)
    if request.text is not None:
        _print_one(predictor, request)
    else:
        _write_file(predictor, request, model_dir)


def _find_model(name: str) -> Path:
    """The directory of the exported model: of a run directory its model/."""
    path = Path(name).expanduser()
    run_dir = RunDir(path)
    for candidate in (run_dir.model, path):
        if (candidate / "config.json").is_file():
            return candidate
    if run_dir.checkpoints.is_dir():
        raise UserError(f"model={name}: this run has no model/ yet; it is exported when the run ends: start it again")
    if not path.is_dir():
        neighbours = [neighbour.name for neighbour in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, neighbours, n=1)
        raise UserError(
            f"model={name}: no such directory" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    raise UserError(f"model={name}: neither a run directory with model/ nor a model with config.json")


def _print_one(predictor: Any, request: Request) -> None:
    assert request.text is not None
    if predictor.generates:
        if request.text_pair is not None:
            raise UserError("text_pair= is given, but a language model takes one text")
        print(request.text + predictor.generate(request.text, max_new_tokens=request.max_new_tokens or 64))
        return
    if request.max_new_tokens is not None:
        raise UserError("max_new_tokens= is given, but this model classifies and continues nothing")
    if predictor.text_pair is None and request.text_pair is not None:
        raise UserError("text_pair= is given, but this model was trained on single texts")
    if predictor.text_pair is not None and request.text_pair is None:
        raise UserError('text_pair= is missing: this model was trained on pairs of texts; add text_pair="..."')
    judged = predictor.predict([request.text], [request.text_pair] if request.text_pair is not None else None)[0]
    print(f"label={judged['label']} probability={judged['probability']:.4f}")


def _write_file(predictor: Any, request: Request, model_dir: Path) -> None:
    import pandas as pd

    from trainer_loop.data.checks import check_splits
    from trainer_loop.data.files import find_files, read_files

    assert request.file is not None
    text = request.text_column or predictor.text
    text_pair = request.pair_column or predictor.text_pair
    columns = [text] if text_pair is None else [text, text_pair]
    files = find_files([request.file], key="file")
    split = read_files(files, split="train", texts=columns, label=None, keeps_all=True)
    problems, _, _ = check_splits({"train": split}, text=text, text_pair=text_pair, label=None, label_names=None)
    if problems:
        raise UserError([_reword(problem) for problem in problems])
    rows = split.rows
    judged = predictor.predict(rows[text], rows[text_pair] if text_pair is not None else None)
    output = Path(request.output) if request.output else _default_output(model_dir, Path(request.file))
    # Arrow's own types: pandas would make 1.0 of a 1 in a column that has a null.
    table = rows.with_format("arrow")[:].to_pandas(types_mapper=pd.ArrowDtype)
    for name in judged[0]:
        # What is predicted must not take the place of what was given.
        column = f"predicted_{name}" if name in table.columns else name
        table[column] = [row[name] for row in judged]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[output.suffix.lower()](table, output)
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror or error}; choose another") from error
    print(f"{len(table):,} rows written to {output}")


def _reword(problem: str) -> str:
    """Problems of data name config keys; here the keys are those of this command."""
    return (
        problem.replace("data.text_pair=", "pair_column=")
        .replace("data.text=", "text_column=")
        .replace("data.train", "the file")
    )


def _default_output(model_dir: Path, file: Path) -> Path:
    suffix = file.suffix.lower() if file.suffix.lower() in _WRITERS else ".csv"
    run_dir = RunDir(model_dir.parent)
    directory = run_dir.predictions if model_dir == run_dir.model else Path("predictions")
    return directory / f"{file.stem}{suffix}"


def _write_jsonl(table: Any, path: Path) -> None:
    table.to_json(path, orient="records", lines=True, force_ascii=False)


def _write_json(table: Any, path: Path) -> None:
    path.write_text(
        json.dumps(json.loads(table.to_json(orient="records")), ensure_ascii=False, indent=1), encoding="utf-8"
    )


_WRITERS = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
}

if __name__ == "__main__":
    sys.exit(main())
