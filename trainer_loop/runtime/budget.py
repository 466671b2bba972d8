"""How many padded tokens a microbatch may hold where the user leaves it to us."""

# On a CPU what its caches hold, on a GPU what fills it.
_TRAINING_TOKENS = {"cpu": 2048, "cuda": 16384}
_EVALUATION_TOKENS = {"cpu": 4096, "cuda": 32768}
_MOST_LOGITS = 2**29  # where every token has one per word of the vocabulary, all at once: 2 GiB a copy in fp32


def choose_token_budget(device_type: str, *, training: bool, logits_per_token: int | None = None) -> int:
    """Padded tokens of one microbatch on this type of device.

    logits_per_token: of a model that holds them for all tokens at once; None where a few at a time are held, or few.
    """
    tokens = _TRAINING_TOKENS if training else _EVALUATION_TOKENS
    budget = tokens.get(device_type, tokens["cuda"])
    return budget if logits_per_token is None else min(budget, _MOST_LOGITS // logits_per_token)
