"""The coin that sends a share of all requests to the teacher, whatever the router thinks of them.

It is tossed before the router decides and knows nothing of the input, so audits are a plain random sample of traffic,
and those that the policy would have handled are plain Bernoulli trials of its agreement.
"""

from __future__ import annotations

import numpy as np

from tracer.errors import ConfigError


class AuditCoin:
    """Heads with probability ``rate``, which may be changed between tosses. Safe to toss from several threads."""

    __slots__ = ("_rate", "_rng")

    def __init__(self, rate: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self.rate = rate

    @property
    def rate(self) -> float:
        """Probability of an audit, in [0, 1]."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"audit rate = {value}: must lie between 0 and 1")
        self._rate = value

    def toss(self) -> bool:
        """Whether this request is audited. Spends one number of the generator whatever the rate."""
        # numpy's generators hold a lock of their own while they draw.
        return bool(self._rng.random() < self._rate)
