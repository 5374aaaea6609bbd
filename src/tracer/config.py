"""Settings of a fit, validated at birth. Everything random or tunable is an argument here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

from tracer.errors import ConfigError

Mode = Literal["certified", "paper"]
Contract = Literal["agreement", "overall"]
Guarantee = Literal["certified", "estimated"]
PoolName = Literal["lean", "full"]
FeatureChoice = Literal["auto", "lexical", "dense", "both"]
Split = Literal["hash", "recent"]
Novelty = Literal["rank", "defer", "off"]
Ledger = Literal["promotion", "lifetime"]

SMALL_LOG = 5000
"""Below this many independent units a larger share certifies: with few, power is worth more than training rows."""


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How to fit and certify a policy.

    ``targets``: agreement with the teacher that must hold on handled traffic; the first is deployed,
    further ones make a certified frontier (``delta`` is split over all of them).
    ``delta``: the probability, over the certification traces, that a promoted policy is below its target.
    ``shadow_share``: share of the traces kept to certify; None chooses by size and ``tracer.fit`` keeps the
    choice for later updates, so that a trace never changes room.
    ``contract``: ``agreement`` promises P(agree | handled) >= target; ``overall`` promises
    P(handled and disagree) <= 1 - target together with ``handled_floor`` (default target - 0.05).
    ``novelty``: unfamiliar inputs are handled last (``rank``), never (``defer``), or like others (``off``).
    ``neighbours``: the acceptor may read the nearest of 2,000 traces where that ranks its inputs clearly better;
    off, a decision on an embedding costs the head alone.
    ``error_costs``: dollars that a wrong answer costs, by predicted label; with ``teacher_usd`` (dollars a
    teacher call) an input is deferred where the expected error costs more than the call.
    ``encoder_cost``: price of one embedding as a share of a teacher call. It ranks lexical-first cascades; half a
    percent of a teacher call is spent where it buys a hundredth of agreement.
    ``ledger``: ``promotion`` states delta for each promotion, ``lifetime`` spends 6 delta / (pi^2 j^2) at
    attempt j so that delta holds over all attempts together.
    """

    targets: tuple[float, ...] = (0.95,)
    delta: float = 0.05
    mode: Mode = "certified"
    contract: Contract = "agreement"
    guarantee: Guarantee = "certified"
    handled_floor: float | None = None
    pool: PoolName = "lean"
    features: FeatureChoice = "auto"
    split: Split = "hash"
    shadow_share: float | None = None
    folds: int = 5
    coverage_floor: float = 0.05
    grid_size: int = 200
    novelty: Novelty = "rank"
    neighbours: bool = True
    per_class: bool = False
    always_defer: tuple[str, ...] = ()
    error_costs: Mapping[str, Decimal] = field(default_factory=dict)
    teacher_usd: Decimal | None = None
    encoder_cost: float = 0.002
    ledger: Ledger = "lifetime"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", _targets(self.targets))
        object.__setattr__(self, "always_defer", tuple(self.always_defer))
        if not isinstance(self.error_costs, Mapping):
            raise ConfigError(f"error_costs = {self.error_costs!r}: must map labels to dollars")
        costs = {str(k): _dollars(f"error_costs[{k!r}]", v) for k, v in self.error_costs.items()}
        object.__setattr__(self, "error_costs", costs)
        if self.teacher_usd is not None:
            object.__setattr__(self, "teacher_usd", _dollars("teacher_usd", self.teacher_usd))
        _open_unit("delta", self.delta)
        if self.shadow_share is not None:
            _open_unit("shadow_share", self.shadow_share)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} = {value!r}: must be one of {', '.join(map(str, allowed))}")
        if not 2 <= self.folds <= 20:
            raise ConfigError(f"folds = {self.folds}: must lie between 2 and 20")
        if not 10 <= self.grid_size <= 2000:
            raise ConfigError(f"grid_size = {self.grid_size}: must lie between 10 and 2000")
        if not 0.0 <= self.coverage_floor < 1.0:
            raise ConfigError(f"coverage_floor = {self.coverage_floor}: must lie in [0, 1)")
        if not 0.0 <= self.encoder_cost < math.inf:
            raise ConfigError(f"encoder_cost = {self.encoder_cost}: must be a number, not negative")
        if self.handled_floor is not None:
            _open_unit("handled_floor", self.handled_floor)
        if self.error_costs and self.teacher_usd is None:
            raise ConfigError("error_costs needs teacher_usd, the dollars of one teacher call, to weigh them against")
        if self.mode == "paper" and self.guarantee != "certified":
            raise ConfigError("mode = 'paper' has no guarantee to choose: leave guarantee as it is")

    @property
    def target(self) -> float:
        """The deployed target."""
        return self.targets[0]

    def shadow_share_for(self, n_units: int) -> float:
        """Share of the traces that certify: as set, else 0.3 of a small log and 0.2 of a large one.

        ``n_units``: groups, and traces without one, since one trace a group certifies.
        """
        if self.shadow_share is not None:
            return self.shadow_share
        return 0.3 if n_units < SMALL_LOG else 0.2

    def handled_floor_for(self, target: float) -> float:
        """Certified floor on handled agreement that goes with the overall contract."""
        return self.handled_floor if self.handled_floor is not None else max(target - 0.05, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; ``FitConfig.from_dict`` reads it back."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        out["targets"], out["always_defer"] = list(self.targets), list(self.always_defer)
        out["error_costs"] = {k: str(v) for k, v in self.error_costs.items()}
        out["teacher_usd"] = None if self.teacher_usd is None else str(self.teacher_usd)
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """Read a mapping written by ``as_dict``; unknown keys are errors."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**values)


_CHOICES: dict[str, tuple[object, ...]] = {
    "mode": get_args(Mode),
    "contract": get_args(Contract),
    "guarantee": get_args(Guarantee),
    "pool": get_args(PoolName),
    "features": get_args(FeatureChoice),
    "split": get_args(Split),
    "novelty": get_args(Novelty),
    "neighbours": (True, False),
    "ledger": get_args(Ledger),
}


def _targets(value: float | Sequence[float]) -> tuple[float, ...]:
    try:
        targets = (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"targets = {value!r}: give a number, or several") from error
    if not targets:
        raise ConfigError("targets is empty: give at least one target agreement, such as 0.95")
    for target in targets:
        _open_unit("target", target)
    if len(set(targets)) != len(targets):
        raise ConfigError(f"targets repeat: {targets}")
    return targets


def _dollars(name: str, value: object) -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation as error:
        raise ConfigError(f"{name} = {value!r}: must be dollars, such as 0.0026") from error
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"{name} = {value!r}: must be dollars, not negative")
    return amount


def _open_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} = {value}: must lie strictly between 0 and 1")
