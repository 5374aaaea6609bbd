"""A content-addressed cache of embeddings: no text is embedded twice, and no text is written to disk.

One SQLite file for each embedder: key = blake2b of the text, value = the vector as little-endian float32.
The files keep SQLite's rollback journal rather than a write-ahead log: a log would hold the vectors that
`EmbeddingCache.forget` removes until its next checkpoint, and it cannot live on a network folder.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from tracer.errors import EmbedderError, FeatureError
from tracer.features.dense import Embedder, checked
from tracer.types import EmbedderIdentity, Float32

_KEYS_A_QUERY = 500  # below the 999 variables that old builds of SQLite allow
_WAIT_S = 60.0  # for the lock of another process; a write takes milliseconds


class EmbeddingCache:
    """Vectors on disk, one file for each embedder in ``folder``; several processes may share it.

    Connections live for one operation, so that threads and forks need no care.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, identity: EmbedderIdentity) -> Path:
        """Where the vectors of this embedder lie. A hash, since a digest may hold any characters."""
        address = hashlib.sha256(f"{identity.dimension}\n{identity.digest}".encode()).hexdigest()
        return self.folder / f"{address[:32]}.sqlite"

    def read(self, identity: EmbedderIdentity, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The cached vectors among ``keys``, as float32 bytes. Raises EmbedderError on a corrupt file."""
        path, size = self.file(identity), 4 * identity.dimension
        found: dict[bytes, bytes] = {}
        if not keys or not path.exists():
            return found
        with _opened(path) as connection:
            for chunk in _chunks(keys, _KEYS_A_QUERY):
                marks = ",".join("?" * len(chunk))
                query = f"SELECT key, vector FROM vectors WHERE key IN ({marks})"  # noqa: S608  # marks only
                found.update(connection.execute(query, chunk).fetchall())
        for blob in found.values():
            if not isinstance(blob, bytes) or len(blob) != size:
                shown = f"{len(blob)} bytes" if isinstance(blob, bytes) else type(blob).__name__
                raise _corrupt(path, f"a vector of {shown}, expected {size} bytes")
        return found

    def write(self, identity: EmbedderIdentity, vectors: Mapping[bytes, bytes]) -> None:
        """Add vectors in one transaction; those already there stay. Raises EmbedderError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmbedderError(f"embedding cache {self.folder} cannot be made: {error}") from error
        with _opened(self.file(identity)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", vectors.items())
            connection.execute("COMMIT")

    def forget(self, texts: Sequence[str]) -> int:
        """Remove these texts from the files of all embedders; how many vectors went.

        The bytes are overwritten in the file, not only unlinked from its index.
        """
        keys = [(key,) for key in map(text_key, texts)]
        n_removed = 0
        for path in sorted(self.folder.glob("*.sqlite")):
            with _opened(path) as connection:
                connection.execute("BEGIN IMMEDIATE")
                n_removed += connection.executemany("DELETE FROM vectors WHERE key = ?", keys).rowcount
                connection.execute("COMMIT")
        return n_removed


class CachedEmbedder:
    """An embedder that asks ``embedder`` only for the texts that ``cache`` does not hold.

    Missing texts are embedded ``chunk_size`` at a time and stored after each chunk: an interrupted run
    resumes where it stopped.
    """

    def __init__(self, embedder: Embedder, cache: EmbeddingCache, *, chunk_size: int = 1024) -> None:
        if chunk_size < 1:
            raise FeatureError(f"chunk_size {chunk_size} must be positive")
        self._embedder, self._cache, self._chunk_size = embedder, cache, chunk_size

    @property
    def identity(self) -> EmbedderIdentity:
        """The identity of the embedder behind the cache."""
        return self._embedder.identity

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d); a text that repeats is embedded once. Raises EmbedderError."""
        if isinstance(texts, str):
            raise FeatureError("texts must be a sequence of strings, not one string")
        identity = self.identity
        keys = [text_key(text) for text in texts]
        text_of = dict(zip(keys, texts, strict=True))
        found = self._cache.read(identity, list(text_of))
        missing = [key for key in text_of if key not in found]
        for chunk in _chunks(missing, self._chunk_size):
            vectors = checked(self._embedder, [text_of[key] for key in chunk]).astype("<f4", copy=False)
            fresh = {key: row.tobytes() for key, row in zip(chunk, vectors, strict=True)}
            self._cache.write(identity, fresh)
            found.update(fresh)
        flat = np.frombuffer(b"".join(found[key] for key in keys), dtype="<f4")
        return flat.reshape(len(keys), identity.dimension).astype(np.float32)

    def forget(self, texts: Sequence[str]) -> int:
        """Remove these texts from the cache, for all embedders; how many vectors went."""
        return self._cache.forget(texts)

    def __repr__(self) -> str:
        return f"CachedEmbedder({self._embedder!r}, folder={str(self._cache.folder)!r})"


def text_key(text: str) -> bytes:
    """The 32-byte address of a text. Lone surrogates, which logs do hold, get an address too."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode whose errors name the file; an open transaction is rolled back."""
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
            yield connection
    except sqlite3.OperationalError as error:  # a lock, a full disk, a missing permission: the data may be fine
        raise EmbedderError(f"embedding cache {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, problem: str) -> EmbedderError:
    return EmbedderError(f"embedding cache {path} is corrupt ({problem}): delete this file and run again")


def _chunks(keys: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
