"""Keys that are made here."""

from __future__ import annotations

import re

from tracer.gateway.credentials import KeyHash, new_key, sha256_of


def test_a_key_is_all_of_its_entropy() -> None:
    asked: list[int] = []

    def entropy(n: int) -> bytes:
        asked.append(n)
        return bytes(range(n))

    key = new_key(entropy)
    assert asked == [32]
    assert key == "tr-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert re.fullmatch(r"tr-[A-Za-z0-9_-]{43}", new_key(lambda n: b"\xff" * n))


def test_its_digest_is_read_back() -> None:
    key = new_key(lambda n: b"k" * n)
    assert KeyHash(sha256_of(key)).check(key)
    assert not KeyHash(sha256_of(key)).check(key + "x")
