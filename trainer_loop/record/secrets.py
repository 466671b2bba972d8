"""Secrets that must not leave this machine: found in files to be pushed, and masked in our own files."""

import os
import re
from collections.abc import Mapping
from typing import Any

from trainer_loop.config.secrets import MASK, is_from_environment, is_secret

_HUB_TOKEN = r"\b(?:hf|api_org|hf_oauth)_[A-Za-z0-9_]{20,}"
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_FORMS = re.compile(f"{_HUB_TOKEN}|{_PASSWORD_IN_URL.pattern}")
_SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|KEY|APIKEY|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIALS?)(_|$)")
_SHORTEST_IN_TEXT = 12  # shortest value of an environment variable that is searched; a shorter one may be a word


def mask_secrets(value: Any, *, key: str = "") -> Any:
    """Replace every secret in plain data by `***`, at any depth.

    The value of a key such as `api_key` is a secret. In any text, these parts are masked: text that looks like a hub
    token, the user and password of a URL, and the value of a secret environment variable.
    """
    if isinstance(value, Mapping):
        below = key if is_secret(key, "") else ""
        return {name: mask_secrets(item, key=below or str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [mask_secrets(item, key=key) for item in value]
    if is_from_environment(value):
        return value
    if is_secret(key, value) and not _PASSWORD_IN_URL.search(str(value)):
        return MASK
    if not isinstance(value, str):
        return value
    for secret in [found.group() for found in _FORMS.finditer(value)] + list(_secret_variables().values()):
        value = value.replace(secret, MASK)
    return value


def find_secret(text: str) -> str | None:
    """The kind of secret that a text contains, without the secret itself; None if there is none."""
    if _FORMS.search(text):
        return "text that looks like a token of the hub, or an address with a password"
    for name, secret in _secret_variables().items():
        if secret in text:
            return f"the value of the environment variable {name}"
    return None


def _secret_variables() -> dict[str, str]:
    """Secret environment variables by name. A path, such as in HF_TOKEN_PATH, is not a secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name.upper())
        and len(value) >= _SHORTEST_IN_TEXT
        and not value.startswith(("/", "~", "."))
    }
