"""Secrets that show themselves nowhere, and digests of keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Final

from tracer.errors import ConfigError

HIDDEN: Final = "***"
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_SCRYPT = re.compile(r"scrypt:(\d{1,7}):(\d{1,3}):(\d{1,3}):([A-Za-z0-9+/=]{8,200}):([A-Za-z0-9+/=]{24,200})")
_MAX_MEMORY = 64 << 20
_KEY_BYTES = 32


def new_key(entropy: Callable[[int], bytes]) -> str:
    """A key that nobody guesses: ``tr-`` and 43 letters, digits, dashes and underscores of 256 random bits.

    ``entropy`` gives so many random bytes, such as ``secrets.token_bytes``.
    """
    return "tr-" + base64.urlsafe_b64encode(entropy(_KEY_BYTES)).rstrip(b"=").decode("ascii")


def sha256_of(key: str) -> str:
    """The digest of a key as ``KeyHash`` reads it; only for long random keys, for it is cheap to try."""
    return f"sha256:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


class Secret:
    """A string that ``repr``, ``str``, ``format`` and errors show as ``***``; ``reveal`` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not copied into files")


class KeyHash:
    """A digest of an API key: ``sha256:HEX`` for long random keys, ``scrypt:N:R:P:SALT:DIGEST`` (base64) for others.

    ``check`` takes a microsecond for sha256 and some 50 ms for scrypt with N = 16384. Raises ConfigError for another
    form, without showing it.
    """

    __slots__ = ("_digest", "_salt", "_work")

    def __init__(self, text: str) -> None:
        self._work: tuple[int, int, int] | None = None
        self._salt = b""
        if found := _SHA256.fullmatch(text):
            self._digest = bytes.fromhex(found[1])
        elif found := _SCRYPT.fullmatch(text):
            n, r, p = int(found[1]), int(found[2]), int(found[3])
            try:
                self._salt, self._digest = (base64.b64decode(found[i], validate=True) for i in (4, 5))
            except binascii.Error as error:
                raise ConfigError("salt and digest must be base64") from error
            if n < 2 or n & (n - 1) or min(r, p) < 1 or 128 * r * (n + p) > _MAX_MEMORY or not self._digest:
                raise ConfigError("N must be a power of two, and the work fit 64 MiB")
            self._work = (n, r, p)
        else:
            raise ConfigError("must be sha256:HEX of the key, or scrypt:N:R:P:SALT:DIGEST")

    @property
    def slow(self) -> bool:
        """Whether a check takes long, and so belongs off the event loop."""
        return self._work is not None

    def check(self, key: str) -> bool:
        """Whether this is the key; in constant time."""
        given = key.encode("utf-8", "surrogatepass")
        if self._work is None:
            digest = hashlib.sha256(given).digest()
        else:
            n, r, p = self._work
            size = len(self._digest)
            digest = hashlib.scrypt(given, salt=self._salt, n=n, r=r, p=p, maxmem=2 * _MAX_MEMORY, dklen=size)
        return hmac.compare_digest(digest, self._digest)

    def bound(self, secret: bytes) -> bytes:
        """A key (32 bytes) that is made of a secret and of this digest: another digest gives another one."""
        return hmac.digest(secret, self._salt + self._digest, "sha256")

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyHash) and (self._digest, self._salt, self._work) == (
            other._digest,
            other._salt,
            other._work,
        )

    def __hash__(self) -> int:
        return hash((self._digest, self._salt, self._work))
