"""Embeddings: short vectors that depend on nothing but the text."""

import base64
import hashlib
import struct
from itertools import count, islice
from typing import Any, Final

from taskpilot_instrument.embedded._reply import Received, Reply
from taskpilot_instrument.embedded._tokens import model_of, usage_of

#: Real vectors have 1,536 numbers; tests read better with eight.
_DIMENSIONS: Final = 8


def embeddings_body(received: Received, reply: Reply) -> dict[str, Any]:
    """Return one vector for each input, as numbers or as base64 of little-endian 32-bit floats."""
    asked = received.payload
    given = asked.get("input")
    # A list of integers is one text in tokens, not many texts.
    texts = given if isinstance(given, list) and not all(isinstance(item, int) for item in given) else [given]
    vectors = [_vector(repr(text), asked.get("dimensions") or _DIMENSIONS) for text in texts]
    as_base64 = asked.get("encoding_format") == "base64"
    body: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if as_base64 else vector}
            for index, vector in enumerate(vectors)
        ],
        "model": model_of(received, reply),
    }
    if reply.send_usage:
        tokens = usage_of(received, reply).input_tokens or 0
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return body


def _vector(text: str, dimensions: int) -> list[float]:
    """Return numbers in [-1, 1) that a 32-bit float holds exactly, so that both encodings say the same."""
    digests = (hashlib.sha256(f"{block}:{text}".encode()).digest() for block in count())
    return [byte / 128 - 1 for byte in islice((byte for digest in digests for byte in digest), dimensions)]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
