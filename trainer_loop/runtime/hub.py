"""Whether the Hugging Face hub answers, asked before any library tries again and again for half a minute."""

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
    """Whether the hub answers within 5 seconds; no where HF_HUB_OFFLINE is set. Asked once per process."""
    import huggingface_hub
    from huggingface_hub import constants

    if huggingface_hub.is_offline_mode():
        return False
    answers: list[bool] = []
    # A name server that does not answer ignores the timeout of a socket, so the question is asked beside.
    probe = threading.Thread(target=lambda: answers.append(_probe(constants.ENDPOINT)), daemon=True)
    probe.start()
    probe.join(_PROBE_SECONDS)
    return bool(answers and answers[0])


@contextlib.contextmanager
def offline_unless_reachable() -> Iterator[bool]:
    """Inside, the libraries take only what is cached when the hub does not answer; yields whether it does.

    By themselves they would try again for 20 to 50 seconds before they look into the cache.
    """
    import datasets
    from huggingface_hub import constants

    reachable = hub_is_reachable()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not reachable:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def describe_unreachable() -> str:
    """Why nothing comes from the hub."""
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
        return True  # it answered; what it thinks of the request is for the libraries to say
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
