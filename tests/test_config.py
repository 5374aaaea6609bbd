"""Settings of a fit: what cannot be is refused with its name and value."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.config import SMALL_LOG, FitConfig
from tracer.errors import ConfigError

NAN = float("nan")


def test_the_defaults_are_those_that_the_documents_state() -> None:
    config = FitConfig()
    assert (config.targets, config.delta, config.coverage_floor) == ((0.95,), 0.05, 0.05)
    assert (config.mode, config.contract, config.guarantee) == ("certified", "agreement", "certified")
    assert (config.pool, config.features, config.split, config.novelty, config.ledger) == (
        "lean", "auto", "hash", "rank", "lifetime",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ()}, "targets is empty"),
        ({"targets": (0.0,)}, r"target = 0\.0: must lie strictly between 0 and 1"),
        ({"targets": (0.9, 1.0)}, r"target = 1\.0"),
        ({"targets": (0.9, 0.9)}, "targets repeat"),
        ({"targets": 95}, r"target = 95\.0"),
        ({"targets": (NAN,)}, "target = nan"),
        ({"targets": "0.95"}, "target"),
        ({"delta": 0.0}, r"delta = 0\.0"),
        ({"delta": NAN}, "delta = nan"),
        ({"shadow_share": 1.0}, r"shadow_share = 1\.0"),
        ({"handled_floor": -0.1}, r"handled_floor = -0\.1"),
        ({"mode": "fast"}, "mode = 'fast': must be one of certified, paper"),
        ({"contract": "none"}, "contract = 'none': must be one of agreement, overall"),
        ({"guarantee": "sure"}, "guarantee = 'sure'"),
        ({"pool": "fat"}, "pool = 'fat': must be one of lean, full"),
        ({"features": "sound"}, "features = 'sound'"),
        ({"split": "random"}, "split = 'random'"),
        ({"novelty": "maybe"}, "novelty = 'maybe'"),
        ({"ledger": "red"}, "ledger = 'red'"),
        ({"folds": 1}, "folds = 1: must lie between 2 and 20"),
        ({"folds": 21}, "folds = 21"),
        ({"grid_size": 9}, "grid_size = 9"),
        ({"coverage_floor": 1.0}, r"coverage_floor = 1\.0"),
        ({"coverage_floor": NAN}, "coverage_floor = nan"),
        ({"encoder_cost": -1.0}, r"encoder_cost = -1\.0: must be a number, not negative"),
        ({"encoder_cost": NAN}, "encoder_cost = nan"),
        ({"error_costs": {"a": 1}}, "error_costs needs teacher_usd"),
        ({"error_costs": {"a": "much"}, "teacher_usd": 1}, "error_costs"),
        ({"error_costs": {"a": NAN}, "teacher_usd": 1}, "error_costs"),
        ({"error_costs": {"a": -1}, "teacher_usd": 1}, "error_costs"),
        ({"teacher_usd": "cheap"}, "teacher_usd"),
        ({"teacher_usd": NAN}, "teacher_usd"),
        ({"mode": "paper", "guarantee": "estimated"}, "mode = 'paper' has no guarantee to choose"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitConfig(**settings)


def test_one_target_may_stand_alone() -> None:
    assert FitConfig(targets=0.9).targets == (0.9,)  # type: ignore[arg-type]
    assert FitConfig(targets=(0.9, 0.8)).target == 0.9


def test_money_is_exact() -> None:
    config = FitConfig(error_costs={"a": Decimal("0.1")}, teacher_usd=Decimal("0.003"))
    again = FitConfig(error_costs={"a": 0.1}, teacher_usd=0.003)  # type: ignore[dict-item, arg-type]
    assert again.error_costs["a"] == Decimal("0.1") == config.error_costs["a"]
    assert again.teacher_usd == Decimal("0.003")


def test_a_small_log_keeps_more_to_certify() -> None:
    assert FitConfig().shadow_share_for(SMALL_LOG - 1) == 0.3
    assert FitConfig().shadow_share_for(SMALL_LOG) == 0.2
    assert FitConfig(shadow_share=0.45).shadow_share_for(10) == 0.45


def test_the_overall_contract_has_a_floor() -> None:
    assert FitConfig().handled_floor_for(0.95) == pytest.approx(0.9)
    assert FitConfig().handled_floor_for(0.02) == 0.0
    assert FitConfig(handled_floor=0.7).handled_floor_for(0.95) == 0.7


open_unit = st.floats(0.01, 0.99)


@given(
    targets=st.lists(open_unit, min_size=1, max_size=4, unique=True),
    delta=open_unit,
    costs=st.dictionaries(st.text(min_size=1), st.decimals(0, 100, places=3), max_size=3),
    shadow_share=st.none() | open_unit,
    novelty=st.sampled_from(["rank", "defer", "off"]),
    always_defer=st.lists(st.text(min_size=1), max_size=2),
)
def test_settings_survive_json(
    targets: list[float], delta: float, costs: dict[str, Decimal], shadow_share: float | None, novelty: Any,
    always_defer: list[str],
) -> None:  # fmt: skip
    config = FitConfig(
        targets=tuple(targets), delta=delta, error_costs=costs, teacher_usd=Decimal("0.01"),
        shadow_share=shadow_share, novelty=novelty, always_defer=tuple(always_defer),
    )  # fmt: skip
    assert FitConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown settings: alpha, targt; known: .*targets"):
        FitConfig.from_dict({"targt": 0.9, "alpha": 0.05})
