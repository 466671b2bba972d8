"""Checks whether the Hugging Face hub answers, before the libraries do: they would retry for half a minute."""

import contextlib
import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

_PROBE_SECONDS = 5.0


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub answers within 5 seconds; false if HF_HUB_OFFLINE is set. Checked once per process."""
    import huggingface_hub
    from huggingface_hub import constants

    if huggingface_hub.is_offline_mode():
        return False
    answers: list[bool] = []
    # The socket timeout does not cover a name server that does not answer, so a thread runs the check.
    probe = threading.Thread(target=lambda: answers.append(_probe(constants.ENDPOINT)), daemon=True)
    probe.start()
    probe.join(_PROBE_SECONDS)
    return bool(answers and answers[0])


@contextlib.contextmanager
def offline_unless_reachable() -> Iterator[str | None]:
    """Switch the libraries to their caches inside the block if the hub does not answer.

    Without this they would retry for 20 to 50 seconds before they look into the cache.

    Yields:
        The reason why the hub is not used; None if it is used.
    """
    import datasets
    from huggingface_hub import constants

    reason = None if hub_is_reachable() else describe_unreachable()  # offline mode below would become the reason
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if reason is not None:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def describe_unreachable() -> str:
    """Return the reason why nothing is loaded from the hub."""
    import huggingface_hub
    from huggingface_hub import constants

    if huggingface_hub.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return f"the hub ({constants.ENDPOINT}) does not answer"


def _probe(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answered; the libraries report the error of their own request
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
