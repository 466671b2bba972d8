"""How many padded tokens a microbatch may hold where the user leaves it to us, and what one more microbatch costs."""

# On a CPU what its caches hold, on a GPU what fills it.
_TRAINING_TOKENS = {"cpu": 2048, "cuda": 16384}
_EVALUATION_TOKENS = {"cpu": 4096, "cuda": 32768}
# What a forward and backward pass costs however few rows it has. On a CPU starting its operations and casting the
# weights takes the time of some ten tokens. On a GPU starting them takes ten milliseconds or more, in which a full card
# computes thousands of tokens.
_MICROBATCH_TOKENS = {"cpu": 64, "cuda": 4096}
_MOST_LOGITS = 2**29  # where every token has one per word of the vocabulary, all at once: 2 GiB a copy in fp32


def choose_token_budget(device_type: str, *, training: bool, logits_per_token: int | None = None) -> int:
    """Padded tokens of one microbatch on this type of device.

    logits_per_token: of a model that holds them for all tokens at once; None where a few at a time are held, or few.
    """
    tokens = _TRAINING_TOKENS if training else _EVALUATION_TOKENS
    budget = tokens.get(device_type, tokens["cuda"])
    return budget if logits_per_token is None else min(budget, _MOST_LOGITS // logits_per_token)


def choose_microbatch_tokens(device_type: str) -> int:
    """What one more microbatch costs on this type of device, in padded tokens."""
    return _MICROBATCH_TOKENS.get(device_type, _MICROBATCH_TOKENS["cuda"])
