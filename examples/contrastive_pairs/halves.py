"""Pairs of texts that belong together: the two halves of a made-up review."""

from trainer_loop.quickstart import reviews


def _halve(rows):
    texts = [row["text"].split() for row in rows]
    return [
        {"first": " ".join(words[: len(words) // 2]), "second": " ".join(words[len(words) // 2 :])} for words in texts
    ]


def train():
    return _halve(reviews.train()[:4000])


def validation():
    return _halve(reviews.validation()[:400])
