"""Limits of the requests to a service."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceLimits:
    """Limits of requests. Each is a key of the command `serve`.

    Attributes:
        max_body_bytes: Bytes of a request.
        max_rows: Rows of a request.
        max_text_length: Characters of a text.
        max_list_length: Elements of a list in a row, such as words, choices or messages.
        max_pixels: Pixels of an image.
        max_queue: Requests that are open at the same time: read, waiting or predicted.
        max_seconds: From the first byte of a request to its answer.
        batch_rows: Rows of several requests that are predicted together; a request with more rows is predicted alone.
        batch_ms: Milliseconds that a request waits for others.
    """

    max_body_bytes: int = 4 * 2**20
    max_rows: int = 256
    max_text_length: int = 20_000
    max_list_length: int = 1000
    max_pixels: int = 16_000_000
    max_queue: int = 100
    max_seconds: int = 30
    batch_rows: int = 32
    batch_ms: int = 5
