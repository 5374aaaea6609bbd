"""Embeddings from an OpenAI-compatible HTTP API."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import numpy as np

from tracer.errors import ConfigError, EmbedderError, MissingExtraError
from tracer.features.dense import as_vectors
from tracer.types import EmbedderIdentity, Float32

if TYPE_CHECKING:
    import httpx2

_DEFAULT_URL = "https://api.openai.com/v1"
_LONGEST_WAIT_S = 60.0


class OpenAIEmbedder:
    """An embedding model behind ``POST {base_url}/embeddings``.

    ``base_url`` defaults to OPENAI_BASE_URL, then to OpenAI itself; ``api_key`` to OPENAI_API_KEY (a local
    server may need none). Status 429 and 5xx, timeouts and lost connections are retried ``retries`` times
    with exponential backoff and jitter, or after the server's Retry-After (at most 60 seconds).
    ``rng`` and ``sleep`` drive that wait. ``transport`` replaces the network.

    The weights of a remote model cannot be hashed: the digest covers the host, the model's name and
    ``dimensions``, and stays the same should the provider change the model under its name.

    One instance may serve several threads. `close` it, or use it as a context manager, to free connections.
    Raises ConfigError for an impossible setting and MissingExtraError without httpx2.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        dimensions: int | None = None,
        batch_size: int = 128,
        timeout_s: float = 30.0,
        retries: int = 3,
        transport: httpx2.BaseTransport | None = None,
        rng: np.random.Generator | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if batch_size < 1 or retries < 0 or timeout_s <= 0:
            raise ConfigError(
                f"batch_size {batch_size} and timeout_s {timeout_s} must be positive, "
                f"retries {retries} must not be negative"
            )
        if dimensions is not None and dimensions < 1:
            raise ConfigError(f"dimensions {dimensions} must be positive")
        url = (base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL).rstrip("/")
        self._host = _host(url)
        self._key = _key(api_key if api_key is not None else os.environ.get("OPENAI_API_KEY"))
        self._model, self._requested, self._batch_size, self._retries = model, dimensions, batch_size, retries
        self._dimension = dimensions
        # the jitter keeps many processes apart, so its default differs from process to process
        self._rng = np.random.default_rng() if rng is None else rng
        self._sleep = sleep
        self._url = f"{url}/embeddings"
        self._client = _client(self._key, timeout_s, transport)

    @property
    def identity(self) -> EmbedderIdentity:
        """Name, dimension and digest; the first look at an unknown dimension costs one call."""
        dimension = self._dimension or self._batch(["dimension"]).shape[1]
        settings = f"{self._host}\n{self._model}\n{self._requested}"
        digest = hashlib.sha256(settings.encode()).hexdigest()
        return EmbedderIdentity(f"openai:{self._model}", dimension, digest)

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d), one request for each ``batch_size`` texts. Raises EmbedderError."""
        if not len(texts):
            return np.zeros((0, self.identity.dimension), np.float32)
        starts = range(0, len(texts), self._batch_size)
        return np.concatenate([self._batch(texts[start : start + self._batch_size]) for start in starts])

    def close(self) -> None:
        """Close the connections; the embedder cannot be used afterwards."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._model!r}, host={self._host!r})"

    def _batch(self, texts: Sequence[str]) -> Float32:
        body: dict[str, object] = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        if self._requested is not None:
            body["dimensions"] = self._requested
        response = self._post(body)
        try:
            rows = _ordered(response.json(), len(texts))
        except (ValueError, KeyError, TypeError) as error:
            raise self._error(f"an answer that is no embedding response: {error}") from error
        vectors = as_vectors(rows, f"openai:{self._model}", len(texts), self._dimension)
        self._dimension = vectors.shape[1]
        return vectors

    def _post(self, body: dict[str, object]) -> httpx2.Response:
        """The first answer of status 200. Raises EmbedderError when retries are spent or useless."""
        import httpx2

        passing = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            asked: float | None = None
            try:
                response = self._client.post(self._url, json=body)
            except httpx2.HTTPError as error:
                if last or not isinstance(error, passing):
                    problem = f"{type(error).__name__}: {error}"
                    raise self._error(f"{problem} (attempt {attempt + 1})") from error
            else:
                if response.status_code == 200:
                    return response
                if last or not (response.status_code == 429 or response.status_code >= 500):
                    problem = f"status {response.status_code}: {self._redacted(_message(response))[:200]}"
                    raise self._error(f"{problem} (attempt {attempt + 1})")
                asked = _retry_after(response)
            backoff = 0.5 * 2**attempt * float(self._rng.uniform(0.5, 1.0))
            self._sleep(min(backoff if asked is None else asked, _LONGEST_WAIT_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _error(self, problem: str) -> EmbedderError:
        return EmbedderError(f"embedder 'openai:{self._model}' at {self._host}: {self._redacted(problem)}")

    def _redacted(self, text: str) -> str:
        """A server may quote the key that it refuses."""
        return text.replace(self._key, "[key]") if self._key else text


def _ordered(answer: object, n: int) -> list[object]:
    """The n vectors of a response by ``index``; ValueError where the indices are not 0 to n - 1."""
    if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
        raise ValueError("no list under 'data'")
    data: list[dict[str, object]] = answer["data"]
    if len(data) != n:
        raise ValueError(f"{len(data)} vectors for {n} texts")
    by_index = {item["index"]: item["embedding"] for item in data}
    if by_index.keys() != set(range(n)):
        raise ValueError(f"the indices are not 0 to {n - 1}")
    return [by_index[i] for i in range(n)]


def _message(response: httpx2.Response) -> str:
    """The message in an error body, or the body itself."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait: a number, or a time measured against the server's own clock."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(response.headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return max(wait.total_seconds(), 0.0)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme in {"http", "https"} else None
    except ValueError:
        host = None
    if host is None:
        raise ConfigError("base_url must be an http or https address with a host")
    return host


def _key(key: str | None) -> str:
    """The key, stripped. Odd characters stop here: the HTTP layer would quote the key in its error."""
    key = (key or "").strip()
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError("the API key holds characters that no HTTP header can carry")
    return key


def _client(key: str, timeout_s: float, transport: httpx2.BaseTransport | None) -> httpx2.Client:
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtraError("httpx2", "remote", "an embedding API") from error
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(headers=headers, timeout=timeout_s, transport=transport)
