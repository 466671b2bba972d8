"""Pushes the folder of a model to the hub in one commit: only files of the model, without secrets."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from trainer_loop.config.secrets import find_secret, mask_secrets
from trainer_loop.config.yaml_core import compose, dump, plain
from trainer_loop.errors import UserError, in_one_line, refuse
from trainer_loop.record.hub_access import MISSING, find_repo_id, open_api, retrying, status_of
from trainer_loop.record.onnx_folder import list_names_on_hub
from trainer_loop.record.run_dir import EXPORT_RECORD
from trainer_loop.runtime.plain_json import parse_json

Content = Path | bytes
Files = Mapping[str, Content]  # path in the repository -> its content

_CARD = "README.md"
REPORT = "report.html"
_CONFIG = "config.yaml"  # of a run
# Files that transformers, peft and tokenizers save, and usual files beside them. Any other file may be data, a log, a
# pickle or the state of an optimizer. Folders inside folders are not pushed either.
_MODEL_FILES = re.compile(
    r"(pytorch_|adapter_|flax_|tf_)?model[-\d_of]*\.(safetensors|bin|msgpack|h5|gguf|onnx)(\.index\.json)?|.*\.(gguf|onnx)"
    r"|([a-z_]+_)?config(_sentence_transformers)?\.json|(modules|normalizer|chat_template|trainer_loop)\.json"
    r"|(special_tokens_map|added_tokens|tokenizer|tekken)\.json|([a-z]+_)?vocab[-\w]*\.(json|txt|bpe)|merges\.txt"
    r"|.*\.(model|tiktoken|spm|codes|jinja)|config\.yaml|README\.md|(LICENSE|NOTICE|USE_POLICY).*|requirements\.txt"
)
_FOLDERS_OF_TRAINING = re.compile(r"(checkpoints?|runs|logs|wandb|predictions|global_step)([-_\d].*)?|[._].*")
_WEIGHTS = re.compile(
    r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|adapter_(model\.bin|config\.json)"
    r"|pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"
)
_BINARY = (".safetensors", ".bin", ".model", ".msgpack", ".h5", ".gguf", ".onnx", ".onnx.data")
_LARGE = 1_000_000  # bytes; larger files may use large file storage and are uploaded one at a time


@dataclass(frozen=True)
class PushResult:
    """The result of a push."""

    url: str  # of the repository
    changed: bool  # false: the repository already had everything
    removed: Sequence[str]  # weights in another format, and files of another run

    def describe(self, what: str) -> str:
        """Return the result as a line for the user. what: the name of what was pushed, such as `the trained model`."""
        if not self.changed:
            return f"hub: {self.url} is up to date"
        removed = f"; removed there: {', '.join(self.removed)}, from before" if self.removed else ""
        return f"hub: pushed {what} to {self.url}{removed}"


def select_files(folder: Path, *, with_folders: bool = True) -> tuple[dict[str, Content], list[str]]:
    """Return the files of a model's folder to push, by their path on the hub, and the names of all other files."""
    files: dict[str, Content] = {}
    left_out = []
    has_code = _names_code(folder / "config.json")
    for path in sorted(folder.iterdir()):
        if path.is_dir() and with_folders and not _FOLDERS_OF_TRAINING.fullmatch(path.name):
            inner, others = select_files(path, with_folders=False)
            files |= {f"{path.name}/{name}": content for name, content in inner.items()}
            left_out += [f"{path.name}/{name}" for name in others]
        elif path.is_file() and (_MODEL_FILES.fullmatch(path.name) or (has_code and path.suffix == ".py")):
            files[path.name] = path
        else:
            left_out.append(path.name)
    return files, left_out


def _names_code(config: Path) -> bool:
    """Return whether the config of a model names Python files in its folder."""
    try:
        return "auto_map" in parse_json(config.read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def gather_run(model: Path, config: Path | None, beside: Files | None = None) -> dict[str, Content]:
    """Return the files to push, with masked secrets in the files of trainer_loop.

    Args:
        beside: Files outside of the folder of the model, such as the report of the run.

    Raises:
        UserError: With all files that hold other secrets or are damaged.
    """
    problems: list[str] = []
    try:
        files, _ = select_files(model)
    except OSError as error:
        raise UserError(f"{model} cannot be read: {error.strerror}") from error
    files |= beside or {}
    for name, path, mask in ((_CONFIG, config, mask_config), (EXPORT_RECORD, model / EXPORT_RECORD, _mask_json)):
        if path is not None and path.is_file():
            try:
                files[name] = mask(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                reason = in_one_line(error)
                problems.append(f"{path} cannot be read: {reason}; mend it, or remove it to push without it")
    for name, content in files.items():
        if (problem := _find_problem(name, content)) is not None:
            problems.append(f"{model / name if name != _CONFIG else config}: {problem}")
    refuse(problems)
    return files


def _find_problem(name: str, content: Content) -> str | None:
    """Return the reason why a file must not be pushed, or None."""
    try:
        if name.endswith(".safetensors") and isinstance(content, Path):
            with safe_open(content, framework="numpy"):
                return None
        if name.endswith(_BINARY):
            return None
        raw = content if isinstance(content, bytes) else content.read_bytes()
    except SafetensorError as error:
        return f"is damaged: {in_one_line(error)}; export the model again"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    secret = find_secret(raw.decode("utf-8", errors="replace"))
    return None if secret is None else f"holds {secret}; remove it from the file"


def push_files(
    files: Files, repo: str, *, private: bool, message: str, default_card: bytes | None = None
) -> PushResult:
    """Push files in one commit; files that the repository already holds are not uploaded again.

    A missing repository is created. Weights in another format are removed, because they would be loaded instead of the
    new ones. With the model of a run, the report and the ONNX file of another run are removed too. The repository does
    not change before everything is uploaded. For errors see `explain_failure`.

    Args:
        private: Whether a new repository is private.
        default_card: README.md if neither the files nor the repository have one.
    """
    # The hub's general advice about model cards is not about this push.
    warnings.filterwarnings("ignore", message="Warnings while validating metadata")
    api = open_api()
    repo_id = find_repo_id(api, repo)
    try:  # not create_repo alone: a token may be allowed to write to the repository but not to create one
        retrying(lambda: api.model_info(repo_id))
    except HfHubHTTPError as error:
        if status_of(error) not in MISSING:
            raise
        retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    return retrying(lambda: _commit(api, repo_id, files, message=message, default_card=default_card))


def _commit(api: HfApi, repo_id: str, files: Files, *, message: str, default_card: bytes | None) -> PushResult:
    """Make the commit. It may be repeated after a failure, even if the hub made it and its answer was lost."""
    before = api.model_info(repo_id)
    names = {sibling.rfilename for sibling in before.siblings or []}
    if default_card is not None and _CARD not in {*names, *files}:
        files = {**files, _CARD: default_card}
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for name, content in files.items():
        addition = CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        # One at a time: for several, huggingface_hub starts threads that keep the process from ending.
        if name.endswith(_BINARY) or addition.upload_info.size >= _LARGE:
            api.preupload_lfs_files(repo_id, [addition], free_memory=False)
        operations.append(addition)
    stale = sorted(name for name in names - set(files) if _WEIGHTS.fullmatch(name))
    if EXPORT_RECORD in files:  # these files belong to the weights of another run
        stale += sorted({name for name in (REPORT, *list_names_on_hub(names)) if name in names - set(files)})
    operations += [CommitOperationDelete(name) for name in stale]
    commit = api.create_commit(repo_id, operations, commit_message=message)
    return PushResult(f"{api.endpoint}/{repo_id}", changed=commit.oid != before.sha, removed=stale)


def mask_config(text: str) -> bytes:
    """Return YAML text with masked secrets; unchanged if it has none. Raises ValueError if it is no mapping."""
    node, faults = compose(text)
    tree = None if node is None or faults else plain(node)
    if not isinstance(tree, dict):
        raise ValueError(f"line {faults[0].line}: {faults[0].problem}" if faults else "it is no mapping")
    masked = mask_secrets(tree)
    if masked == tree:
        return text.encode()
    head = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
    return ("".join(head) + dump(masked)).encode()


def _mask_json(text: str) -> bytes:
    tree = json.loads(text)
    masked = mask_secrets(tree)
    return (text if masked == tree else json.dumps(masked, indent=2, ensure_ascii=False) + "\n").encode()
