"""Load or create the processor of a task: a tokenizer or an image processor."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from trainer_loop.data.wording import enumerate_some
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.runtime.host import expand_home
from trainer_loop.runtime.hub import offline_unless_reachable

_FRAME = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_END_OF_TEXT = "<|endoftext|>"
# The end token follows an answer, where the model must stop. A header ends with a line break, so that the tokens before
# an answer do not depend on the answer.
_PLAIN_TEMPLATE = """\
{%- if bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{{- message.role + ":\\n" }}
{%- if message.role == "assistant" %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}{{ message.content }}{% endif %}{{ "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "assistant:\\n" }}{% endif %}"""
_VOCABULARY_FILES = re.compile(r"tokenizer\.json|vocab\.(txt|json|bpe)|.*\.(model|tiktoken)|tekken\.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BACKEND = "pil"  # of image processors; it gives the same pixels on every machine


def load_tokenizer(
    name_or_path: str, *, trust_remote_code: bool, say: Callable[[str], None]
) -> PreTrainedTokenizerFast:
    """Load the tokenizer in a local folder, or of a hub id (from the cache if the hub does not answer).

    A tokenizer without a padding token gets one, and `say` receives a line about it.

    Raises:
        UserError: The tokenizer cannot be loaded, has no vocabulary, or has no fast form.
    """
    path = expand_home(name_or_path, place="tokenizer")
    if path.is_dir():
        _check_folder(path)
    options = {"trust_remote_code": trust_remote_code}
    tokenizer: PreTrainedTokenizerFast = _load_pretrained(
        AutoTokenizer, name_or_path, noun="tokenizer", options=options
    )
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tokenizer {name_or_path} ({type(tokenizer).__name__}) has no fast form (tokenizer.json); choose another"
        )
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"tokenizer {name_or_path} has no vocabulary (tokenizer.json, vocab.txt or the like)")
    _ensure_padding(tokenizer, name_or_path, say=say)
    return tokenizer


def as_tokenizer(processor: Any) -> Any | None:
    """Return the processor if it is a tokenizer, else None."""
    return processor if hasattr(processor, "backend_tokenizer") else None


def read_chat_template(name: str) -> str:
    """Return the chat template `plain`, or read it from a file. Raises UserError if the file cannot be read."""
    if name == "plain":
        return _PLAIN_TEMPLATE
    path = expand_home(name, place="model.chat_template")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.chat_template: {name} cannot be read: {in_one_line(error)}; set it to plain, or to a file with a "
            "Jinja template"
        ) from error


def train_tokenizer(texts: Iterable[str], *, framed: bool, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, like GPT-2's. It can encode any text; equal texts give an equal tokenizer.

    Args:
        framed: True for a classifier: `[CLS] a [SEP] b [SEP]` with token types 0 and 1, like BERT. False for a language
            model: no tokens are added, and `<|endoftext|>` is the start, end and padding token.
        vocab_size: Most tokens of the vocabulary; it has at least 256 bytes and the special tokens.
        max_length: The `model_max_length` of the saved tokenizer.
    """
    if framed:
        return PreTrainedTokenizerFast(
            tokenizer_object=_frame(_train_byte_level_bpe(texts, vocab_size, special=list(_FRAME.values()))),
            model_max_length=max_length,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
            **_FRAME,
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=_train_byte_level_bpe(texts, vocab_size, special=[_END_OF_TEXT]),
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        bos_token=_END_OF_TEXT,
        eos_token=_END_OF_TEXT,
        pad_token=_END_OF_TEXT,
    )


def _train_byte_level_bpe(texts: Iterable[str], vocab_size: int, *, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # the order of the returned list varies
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _frame(tokenizer: Tokenizer) -> Tokenizer:
    """Add `[CLS]` and `[SEP]` around a text or a pair."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _check_folder(path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    if not any(_VOCABULARY_FILES.fullmatch(name) for name in names):
        content = f"it has {enumerate_some(names)}" if names else "it is empty"
        raise UserError(f"tokenizer {path}: the folder has no tokenizer.json, vocab.txt or the like; {content}")


def _ensure_padding(tokenizer: PreTrainedTokenizerFast, name: str, *, say: Callable[[str], None]) -> None:
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        say(f"tokenizer {name} has no token for padding: its end token {tokenizer.eos_token} stands in")
    else:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        say(f"tokenizer {name} has no token for padding: [PAD] is added, and the model gets an embedding for it")


# ----------------------------------------------------------------------------------------------------- image processors


def load_image_processor(name_or_path: str, *, trust_remote_code: bool) -> Any:
    """Load the image processor in a local folder, or of a hub id. Raises UserError if it cannot be loaded."""
    _check_pillow()
    options = {"backend": _BACKEND, "trust_remote_code": trust_remote_code}
    return _load_pretrained(transformers.AutoImageProcessor, name_or_path, noun="image processor", options=options)


def make_image_processor(config: PretrainedConfig) -> Any:
    """Return the default image processor of a new model's type, with the image size of its config."""
    _check_pillow()
    from PIL import Image

    mapping = transformers.IMAGE_PROCESSOR_MAPPING
    if type(config) not in mapping or _BACKEND not in mapping[type(config)]:
        raise UserError(
            f"model.type: transformers has no image processor for a {config.model_type}; name one in model.tokenizer"
        )
    make, size = mapping[type(config)][_BACKEND], getattr(config, "image_size", None)
    if size is None:
        return make()
    height, width = (size, size) if isinstance(size, int) else size
    default = make()
    full = {"height": height, "width": width}
    sizes = {"size": {"shortest_edge": min(height, width)} if "shortest_edge" in (default.size or {}) else full}
    processor = make(**sizes, **({"crop_size": full} if getattr(default, "crop_size", None) else {}))
    shape = processor(images=Image.new("RGB", (2 * width, 3 * height)), return_tensors="pt")["pixel_values"].shape
    if tuple(shape[-2:]) != (height, width):
        raise UserError(
            f"model.type: the image processor of a {config.model_type} makes images of {shape[-2]} x {shape[-1]}, and "
            f"its config says {height} x {width}; name a processor in model.tokenizer"
        )
    return processor


def _check_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UserError("task.name: a task on images needs the package pillow: pip install pillow") from error


# --------------------------------------------------------------------------------------------- from a folder or the hub


def _load_pretrained(auto: Any, name_or_path: str, *, noun: str, options: Mapping[str, Any]) -> Any:
    """Load from a local folder, or from the hub (from the cache if the hub does not answer).

    Args:
        auto: The Auto class of transformers that loads it.
        noun: The name of the object in messages.
        options: Arguments of `auto.from_pretrained`.

    Raises:
        UserError: It cannot be loaded.
    """
    place = f"{noun} {name_or_path}"
    path = expand_home(name_or_path, place=noun)
    if path.is_dir():
        return _load(auto, str(path), place, options)
    if path.exists():
        raise UserError(f"{place} is a file; name the folder that it is in")
    if not _HUB_ID.fullmatch(name_or_path):
        raise UserError(f"{place}: there is no such folder{_describe_parent(path)}")
    with offline_unless_reachable() as offline:
        return _load(auto, name_or_path, place, options, offline=offline)


def _load(auto: Any, source: str, place: str, options: Mapping[str, Any], *, offline: str | None = None) -> Any:
    try:
        return auto.from_pretrained(source, **options)
    except Exception as error:  # transformers may raise any exception for wrong files
        if offline is not None:
            raise UserError(
                f"{place}: {offline} and it is not in the cache; name a local folder, or fill "
                f"the cache with transformers.{auto.__name__}.from_pretrained({source!r}) where there is network"
            ) from error
        hint = "; model.trust_remote_code=true lets its Python code run" if "trust_remote_code" in str(error) else ""
        raise UserError(f"{place} cannot be loaded: {in_one_line(error)}{hint}") from error


def _describe_parent(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
