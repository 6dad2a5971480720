"""What diagnosis concludes from snapshots, as values: the verdict on speed and findings about learning.

Owns these types and their texts; must not import anything of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stage = Literal["actor", "replay", "learner", "pacing", "network", "memory", "evaluation"]
FindingName = Literal[
    "diverging_q",
    "catastrophic_forgetting",
    "overestimation",
    "stale_data",
    "collapsed_action_choice",
    "reward_scale",
    "degenerate_priorities",
]


@dataclass(frozen=True)
class Verdict:
    """The stage that limits the speed of a run, and a text with the evidence and the setting to change."""

    stage: Stage
    text: str

    @property
    def line(self) -> str:
        """Stage and text in one line."""
        return f"{self.stage}-bound: {self.text}"


@dataclass(frozen=True)
class Finding:
    """Something wrong with learning, first seen at update since_updates; the texts are of the newest look."""

    name: FindingName
    since_updates: int
    evidence: str
    cause: str
    cure: str

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ").replace(" q", " Q")

    @property
    def text(self) -> str:
        """Title, evidence, cause and cure in one line."""
        return f"{self.title}: {self.evidence}. Cause: {self.cause}. Cure: {self.cure}"
