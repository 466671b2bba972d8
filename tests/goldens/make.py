"""Train every shipped config and example for six steps and record what comes out, on one process and on two.

    python tests/goldens/make.py             compare all cases with goldens.json, a minute and a half
    python tests/goldens/make.py imdb squad  compare these
    python tests/goldens/make.py --write     write goldens.json: only where a change of results is intended

Checksums hold on the processor and the libraries they were made with. Elsewhere the rounded figures are compared.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDENS = Path(__file__).with_name("goldens.json")
sys.path[:0] = [str(TESTS), str(ROOT)]

SHORT = (
    "train={epochs: null, steps: 6, precision: no, threads: 1}",
    "data.limit={train: 60, validation: 20}",
    "evaluate.every=3",
    "checkpoint.every=3",
    "log.every=1",
)
NO_HUB = "data.name=null"
GPT2 = "model={name: null, type: gpt2, tokenizer: MODEL, overrides: {n_layer: 1, n_embd: 16, n_head: 2}}"
CAUSAL = (NO_HUB, "data.train=TRAIN", "data.validation=VALIDATION", "data.test=VALIDATION", "data.max_length=32", GPT2)
IMDB = (NO_HUB, "data.train=TRAIN", "data.validation=VALIDATION", "data.max_length=64", "model.name=MODEL")
TAGS = (NO_HUB, "data.config=null", *(f"data.{split}=TAGGED" for split in ("train", "validation", "test")))
T5 = "model={name: null, type: t5, tokenizer: MODEL, overrides: {d_model: 16, d_kv: 8, d_ff: 16, num_heads: 2}}"
OF_CHATS = ("data.max_length=64", "model={tokenizer: train, vocab_size: 300, chat_template: plain}")
VIT = "model={name: null, type: vit, overrides: {image_size: 8, patch_size: 4, hidden_size: 16, intermediate_size: 16}}"
PROMPTS = [
    {"prompt": "Is the bay wide?", "context": "", "completion": "Yes."},
    {"prompt": "Count the ferries:", "context": "one, two", "completion": "There are two of them."},
]
OF_EXAMPLES = {  # config, its splits, and what takes the place of its model
    "squad": (("train", "validation"), ("data.max_length=64", "model.name=MODEL")),
    "translate": (
        ("train", "validation", "test"),
        (T5, "model.overrides={num_layers: 1, num_decoder_layers: 1}", "evaluate.generate.max_new_tokens=8"),
    ),
    "similarity": (
        ("train", "validation"),
        ("data.config=null", "data.max_length=64", "model.name=MODEL", "data.columns.text_pair=sentence1"),
    ),
    "emotions": (("train", "validation", "test"), ("data.config=null", "data.max_length=64", "model.name=MODEL")),
    "choice": (("train", "validation", "test"), ("data.config=null", "data.max_length=64", "model.name=MODEL")),
    "summarize": (
        ("train", "validation", "test"),
        (T5, "model.overrides={num_layers: 1, num_decoder_layers: 1}", "evaluate.generate.max_new_tokens=8"),
    ),
    "preference": (
        ("train", "validation"),
        (
            GPT2,
            "model.lora.merge=true",
            "data.max_length=64",
            "model={tokenizer: train, vocab_size: 300, chat_template: plain}",
        ),
    ),
    "reward": (
        ("train", "validation"),
        (GPT2, "model.lora.merge=true", *OF_CHATS),
    ),
    "chat": (
        ("train",),
        (
            GPT2,
            "model.lora.merge=true",
            "data.max_length=64",
            "model={tokenizer: train, vocab_size: 300, chat_template: plain}",
        ),
    ),
    "images": (("train", "test"), (VIT, "model.overrides={num_hidden_layers: 1, num_attention_heads: 2}")),
}
STREAM = (
    "data.streaming=true",
    "data.shuffle_rows=16",
    "data.label_names=[bad, good]",
    "data.limit={train: null, validation: 20}",
)

# Config and overrides, by name. MODEL, TRAIN, VALIDATION, TAGGED and EXAMPLES stand for a tiny model and made-up rows.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "imdb": ("configs/imdb.yaml", IMDB),
    "mrpc": ("configs/mrpc.yaml", (*IMDB, "data.config=null")),
    "reviews": ("configs/reviews.yaml", ("data.train=TRAIN", "data.max_length=64", "model.name=MODEL")),
    "wikitext": ("configs/wikitext.yaml", (*CAUSAL, "data.config=null")),
    "wikitext_mlm": (
        "configs/wikitext_mlm.yaml",
        (*CAUSAL[:-1], "data.config=null", "data.max_length=32", "model.name=MODEL"),
    ),
    "ner": ("configs/ner.yaml", (*TAGS, "data.max_length=64", "model.name=MODEL")),
    **{
        name: (f"configs/{name}.yaml", (NO_HUB, *(f"data.{split}=EXAMPLES/{name}.jsonl" for split in splits), *model))
        for name, (splits, model) in OF_EXAMPLES.items()
    },
    "quickstart": ("configs/quickstart.yaml", ()),
    **{
        name: (f"examples/{name}/config.yaml", ())
        for name in ("adversarial", "contrastive_pairs", "focal_loss", "gan", "r_drop", "table")
    },
    "example images": ("examples/images/config.yaml", ()),
    "distillation": ("examples/distillation/config.yaml", ("model.name=MODEL", "loop.args={teacher: MODEL}")),
    "LoRA": ("configs/imdb.yaml", (*IMDB, "model.lora.r=4", "optimizer.lr=1e-2")),
    "DoRA and EMA": ("configs/imdb.yaml", (*IMDB, "model.lora={r: 4, dora: true}", "ema.decay=0.9")),
    "packing": ("configs/imdb.yaml", (*IMDB, "model.packing=true")),
    "packed language model": ("configs/wikitext.yaml", (*CAUSAL, "data.config=null", "model.packing=true")),
    "stream": ("configs/imdb.yaml", (*IMDB, *STREAM)),
    "small microbatches": ("configs/imdb.yaml", (*IMDB, "batch.max_tokens=128", "model.gradient_checkpointing=true")),
    "groups": (
        "configs/imdb.yaml",
        (
            *IMDB,
            "optimizer={freeze: ['*embeddings.word*'], layer_decay: 0.9, unfreeze_every: 1}",
            "optimizer.groups=[{match: 'classifier.*', lr: 1e-3}]",
            "train.max_grad_value=0.01",
        ),
    ),
    "Muon": ("configs/imdb.yaml", (*IMDB, "optimizer={name: muon, lr: 1e-2}", "scheduler.name=cosine")),
    "schedule-free": ("configs/imdb.yaml", (*IMDB, "optimizer.name=schedulefree.AdamWScheduleFree")),
    "plateau": ("configs/imdb.yaml", (*IMDB, "scheduler={name: reduce_lr_on_plateau, warmup: 0}", "evaluate.every=1")),
}


def prepare(directory: Path) -> None:
    """Write the tiny model and the rows that stand for those of the hub."""
    import torch
    from made_up import make_reviews, write_csv
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from trainer_loop import load_config
    from trainer_loop.tasks.find import load_task

    reviews = {"train": make_reviews(60), "validation": make_reviews(20, seed=3)}
    words = sorted({word for text, _ in reviews["train"] for word in text.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        mask_token="[MASK]",
    )
    tokenizer.save_pretrained(directory / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=2,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(directory / "model")
    for split, rows in reviews.items():
        # The columns of every shipped config: a pair of texts beside the one.
        both = [
            (text, text, rows[-1 - number][0], int(label == "positive")) for number, (text, label) in enumerate(rows)
        ]
        write_csv(directory / f"{split}.csv", both, header=("text", "sentence1", "sentence2", "label"))
    tagged = [
        {"tokens": text.split(), "ner_tags": ["B-LONG" if len(word) > 5 else "O" for word in text.split()]}
        for text, _ in reviews["train"]
    ]
    (directory / "tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tagged))
    for name in OF_EXAMPLES:
        values = load_config(str(ROOT / CASES[name][0]), [])
        names = values.data.columns
        rows = [
            {names.get(own, own): value for own, value in row.items()}
            for row in (PROMPTS if name == "chat" else load_task(values.task.name).example) * 20
        ]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_cases(directory: Path, names: Sequence[str]) -> None:
    """Train these cases in this process, which may be one of a group; process 0 writes results.json."""
    import torch

    from trainer_loop import build, load_config

    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stand_ins = {
        "MODEL": str(directory / "model"),
        "TRAIN": str(directory / "train.csv"),
        "VALIDATION": str(directory / "validation.csv"),
        "TAGGED": str(directory / "tagged.jsonl"),
        "EXAMPLES": str(directory),
    }
    results = {}
    for name in names:
        config, overrides = CASES[name]
        run_dir = directory / f"{num_processes}" / name
        arguments = [f"run_dir={run_dir}", f"data.cache_dir={directory / 'cache'}", *SHORT]
        for override in overrides:
            for word, stand_in in stand_ins.items():
                override = override.replace(word, stand_in)
            arguments.append(override)
        build(load_config(str(ROOT / config), arguments)).fit()
        if rank == 0:
            results[name] = describe(run_dir)
    if rank == 0:
        (directory / f"results-{num_processes}.json").write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def describe(run_dir: Path) -> dict[str, Any]:
    """Checksums and rounded figures of a finished run."""
    import torch
    from safetensors.torch import load_file

    from trainer_loop.record.logs import MACHINE_METRICS

    checkpoint = run_dir / "checkpoints" / "step-00000006"
    weights = load_file(checkpoint / "model.safetensors")
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in row.items() if key not in MACHINE_METRICS} for row in rows]
    return {
        "weights": checksum(flatten(weights)),
        "optimizer": checksum(flatten(optimizer)),
        "metrics": hashlib.sha256(json.dumps(metrics, sort_keys=True).encode()).hexdigest()[:16],
        "losses": [row["loss"] for row in metrics if "loss" in row],
        "validation": [row["validation/loss"] for row in metrics if "validation/loss" in row],
        "norm": float(sum(tensor.double().square().sum() for tensor in weights.values())) ** 0.5,
    }


def flatten(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested containers, with their paths, in an order that depends on the paths alone."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from flatten(value[key], f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}/{index}")
    else:
        yield name, value


def checksum(leaves: Iterable[tuple[str, Any]]) -> str:
    import torch

    digest = hashlib.sha256()
    for name, leaf in leaves:
        digest.update(name.encode())
        if isinstance(leaf, torch.Tensor):
            digest.update(str(leaf.dtype).encode() + leaf.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()[:16]


def platform() -> dict[str, str]:
    """What decides the last bits of a sum: checksums of another platform say nothing."""
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "processor": processor,
    }


def run_all(
    directory: Path, names: Sequence[str] = tuple(CASES), *, on_two: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return the results of these cases on one process, and on two (those in `on_two`; None: all)."""
    import fork_server
    from scenarios import make_ranks

    prepare(directory)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"TRAINER_LOOP_CACHE": str(directory / "cache")}
    environment.setdefault("HF_DATASETS_CACHE", str(directory / "datasets"))  # tests have one, and a server for it
    results = {}
    for num_processes, ranks, cases in ((1, [{}], names), (2, make_ranks(2), names if on_two is None else on_two)):
        with (directory / f"output-{num_processes}.txt").open("w+") as output:
            processes = [
                fork_server.start(
                    [__file__, *cases, "--run-in", str(directory)],
                    cwd=ROOT,
                    env=environment | rank,
                    stdout=output,
                    stderr=output,
                )
                for rank in ranks
            ]
            codes = [process.wait(900) for process in processes]
            output.seek(0)
            if any(codes):
                raise RuntimeError(output.read()[-10_000:])
        results[str(num_processes)] = json.loads((directory / f"results-{num_processes}.json").read_text())
    return {"platform": platform(), "results": results}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help="the cases, all by default")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--run-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_in is not None:
        run_cases(arguments.run_in, arguments.names)
        return 0
    names = arguments.names or list(CASES)
    with tempfile.TemporaryDirectory() as directory:
        made = run_all(Path(directory), names)
    if arguments.write:
        if names != list(CASES):
            parser.error("--write writes all cases")
        GOLDENS.write_text(json.dumps(made, indent=1) + "\n")
        return 0
    known = json.loads(GOLDENS.read_text())
    if made["platform"] != known["platform"]:
        print(f"another platform, {made['platform']}: checksums will differ")
    different = [
        f"{name} on {number} processes: {key}"
        for number, cases in known["results"].items()
        for name in names
        for key, value in cases.get(name, {"a golden": "recorded"}).items()
        if made["results"][number][name].get(key) != value
    ]
    print("\n".join(different) or "all equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
