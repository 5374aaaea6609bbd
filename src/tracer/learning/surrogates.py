"""A surrogate: one head, or a weighted sum of the logits of several heads on lexical and dense blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tracer.learning.heads import Block, Head
from tracer.types import Float32

BlockName = Literal["lexical", "dense"]
Blocks = Mapping[BlockName, Block]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A trained head, the block it reads, and its weight in the sum (which includes the temperature)."""

    name: str
    block: BlockName
    head: Head
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """``parts`` whose weighted logits add up; softmax of the sum is the class probability."""

    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        """For instance ``dense logistic + lexical logistic``."""
        return " + ".join(f"{part.block} {part.name}" for part in self.parts)

    @property
    def blocks(self) -> frozenset[BlockName]:
        """The blocks that must be computed."""
        return frozenset(part.block for part in self.parts)

    def views(self, blocks: Blocks) -> tuple[Float32, ...]:
        """Weighted logits (n, k) of each part; they add up to the surrogate's logits."""
        out = []
        for part in self.parts:
            logits = part.head.logits(blocks[part.block])
            logits *= np.float32(part.weight)
            out.append(logits)
        return tuple(out)
