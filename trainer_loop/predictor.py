"""An exported model at work: texts in, labels and probabilities (or a continuation) out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from trainer_loop.adapters import is_adapter, load_adapted_model
from trainer_loop.data.batch_plan import cut_evaluation
from trainer_loop.data.loader import move_batch
from trainer_loop.errors import UserError, in_one_line
from trainer_loop.model_config import count_tokens
from trainer_loop.record.export import ExportRecord
from trainer_loop.runtime.budget import choose_microbatch_tokens, choose_token_budget
from trainer_loop.runtime.quiet import quieten_libraries
from trainer_loop.tasks.shipped import TASKS
from trainer_loop.trials import make_rows, try_padding


class Predictor:
    """Predicts rows of text, in batches of like length; results come back in the order of the rows."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, task: str, max_length: int, text: str, text_pair: str | None
    ):
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.model = model.to(self.device).eval()
        self.task = TASKS[task]()
        self.task.bind(tokenizer)
        rows = make_rows(self.task, self.model, max_length=max_length)
        self.task.use_padding(try_padding(self.model, self.task, rows).side)
        self.tokenizer = tokenizer
        self.generates = task == "causal_lm"
        self.max_length = max_length
        self.text = text  # columns the model was trained on
        self.text_pair = text_pair

    @classmethod
    def load(cls, model_dir: str | Path, *, trust_remote_code: bool = False) -> "Predictor":
        """A model directory; one that was not exported here is taken for a classifier of column `text`.

        trust_remote_code: Python code that came with the model may run. Raises UserError where it cannot be loaded.
        """
        quieten_libraries()
        model_dir = Path(model_dir)
        record = ExportRecord.read(model_dir)
        trusting: dict[str, Any] = {"trust_remote_code": trust_remote_code}  # left out, transformers would ask
        try:
            task = record.task if record is not None else _guess_task(model_dir, **trusting)
            if task not in TASKS:  # a name in a model directory must not choose what is imported
                raise UserError(f"model={model_dir} was trained for the task {task}; predict knows {', '.join(TASKS)}")
            tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, **trusting)
            model_class = TASKS[task].model_class
            if is_adapter(model_dir):
                num_tokens = count_tokens(tokenizer)
                model = load_adapted_model(model_dir, model_class=model_class, num_tokens=num_tokens, **trusting)
                missing = set()
            else:
                model, loaded = getattr(transformers, model_class).from_pretrained(
                    model_dir, dtype=torch.float32, output_loading_info=True, **trusting
                )
                missing = loaded["missing_keys"]
        except UserError:
            raise
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            hint = "; trust_remote_code=true lets its code run" if "trust_remote_code" in str(error) else ""
            raise UserError(f"model={model_dir} cannot be loaded: {in_one_line(error)}{hint}") from error
        if missing:
            raise UserError(
                f"model={model_dir} has no weights for {', '.join(sorted(missing)[:4])}: "
                f"it was not trained for {task}, and would answer at random"
            )
        return cls(
            model,
            tokenizer,
            task=task,
            max_length=(record and record.max_length) or min(tokenizer.model_max_length, 512),
            text=(record and record.text) or "text",
            text_pair=record.text_pair if record is not None else None,
        )

    @torch.no_grad()
    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One dict a text: `label` and `probability`, or for a causal LM `loss` (nats a token) and `perplexity`.

        A text is cut at `max_length` tokens; a causal LM has nothing to say (None) of a text of one token.
        """
        encoded = self._encode(list(texts), None if pairs is None else list(pairs))
        lengths = [len(row["input_ids"]) for row in encoded]
        logits_per_token = self.task.logits_per_token(self.model.config)
        budget = choose_token_budget(self.device.type, training=False, logits_per_token=logits_per_token)
        judged: list[dict[str, Any]] = [{} for _ in encoded]
        (microbatches,) = cut_evaluation(
            lengths,
            num_processes=1,
            max_tokens=budget,
            per_device=None,
            microbatch_tokens=choose_microbatch_tokens(self.device.type),
        )
        for rows in microbatches:
            batch = move_batch(self.task.collate([encoded[row] for row in rows]), self.device)
            outputs = self.task.predict(self.model, batch)
            for row, values in zip(rows, self._describe(outputs), strict=True):
                judged[row] = values
        return judged

    @torch.no_grad()
    def generate(self, text: str, *, max_new_tokens: int) -> str:
        """The likeliest continuation of a text, greedily."""
        inputs = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(self.device)
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)  # type: ignore[operator]
        return str(self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def _encode(self, texts: list[str], pairs: list[str] | None) -> list[dict[str, Any]]:
        encoded = self.tokenizer(
            texts, pairs, truncation=True, max_length=self.max_length, return_attention_mask=False, verbose=False
        )
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def _describe(self, outputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        if self.generates:
            sums, counts = outputs["predictions"].tolist(), outputs["references"].tolist()
            losses = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
            return [
                {"loss": loss, "perplexity": None if loss is None else math.exp(min(loss, 700.0))} for loss in losses
            ]
        names: dict[int, str] = self.model.config.id2label  # type: ignore[assignment, union-attr]
        best = outputs["probabilities"].max(dim=-1)
        return [
            {"label": names[index], "probability": probability}
            for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _guess_task(model_dir: Path, *, trust_remote_code: bool) -> str:
    config = transformers.AutoConfig.from_pretrained(model_dir, trust_remote_code=trust_remote_code)
    architectures = config.architectures or [""]
    return "causal_lm" if architectures[0].endswith(("ForCausalLM", "LMHeadModel")) else "sequence_classification"
