"""Default number of padded tokens in a microbatch, and the cost of one more microbatch."""

# A CPU microbatch should fit into the caches; a GPU microbatch should fill the card.
_TRAINING_TOKENS = {"cpu": 2048, "cuda": 16384}
_EVALUATION_TOKENS = {"cpu": 4096, "cuda": 32768}
# The fixed cost of a forward and backward pass. On a CPU, starting the operations and casting the weights takes the
# time of tens of tokens. On a GPU, starting them takes ten milliseconds or more; a full card computes thousands of
# tokens in this time.
_MICROBATCH_TOKENS = {"cpu": 64, "cuda": 4096}
# oneDNN compiles its kernels in bf16 for each new shape, which takes as long as hundreds of tokens.
_MICROBATCH_TOKENS_IN_BF16 = {"cpu": 256}
_SHAPE_STEPS_IN_BF16 = {"cpu": (16, 8)}
_MOST_LOGITS = 2**29  # if the logits of all tokens are held at once: 2 GiB for each copy in fp32


def choose_token_budget(device_type: str, *, training: bool, logits_per_token: int | None = None) -> int:
    """Return the default limit of padded tokens in one microbatch, for training or for evaluation.

    Args:
        logits_per_token: size of the vocabulary if the model holds the logits of all tokens at once; otherwise None.
    """
    tokens = _TRAINING_TOKENS if training else _EVALUATION_TOKENS
    budget = tokens.get(device_type, tokens["cuda"])
    return budget if logits_per_token is None else min(budget, _MOST_LOGITS // logits_per_token)


def choose_shape_steps(device_type: str, *, precision: str = "no") -> tuple[int, int]:
    """Return the numbers of tokens and rows to whose multiples microbatches are padded, so that few shapes occur.

    (1, 1) allows any shape. `precision` is a value of `train.precision`.
    """
    return _SHAPE_STEPS_IN_BF16.get(device_type, (1, 1)) if precision == "bf16" else (1, 1)


def choose_microbatch_tokens(device_type: str, *, precision: str = "no") -> int:
    """Return the cost of one more microbatch, in padded tokens. `precision` is a value of `train.precision`."""
    costs = _MICROBATCH_TOKENS | (_MICROBATCH_TOKENS_IN_BF16 if precision == "bf16" else {})
    return costs.get(device_type, costs["cuda"])
