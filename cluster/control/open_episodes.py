"""Episodes that a checkpoint of the serial runtime would end, because the next life resets all environments.

Owns the rule that such a checkpoint waits for them; pure.
"""

from actors.core import MOST_EPISODE_STEPS, RolloutReport


class OpenEpisodes:
    """Follows the episodes of one life.

    If lives were shorter than episodes, nothing that happens late in an episode would ever be seen. So a life
    lasts at least twice as long as each episode that its checkpoint breaks off. An episode that does not
    end by MOST_EPISODE_STEPS holds nothing up any more.
    """

    def __init__(self, num_lanes: int) -> None:
        self._num_lanes = num_lanes
        self._env_steps = 0
        self.longest_steps = 0
        """Steps so far of the longest episode in progress."""

    def take(self, report: RolloutReport) -> None:
        """Takes in the report of a chunk of acting."""
        self._env_steps += report.env_steps
        self.longest_steps = report.longest_open_steps

    @property
    def lane_steps(self) -> int:
        """Steps of each lane in this life."""
        return self._env_steps // self._num_lanes

    @property
    def hold_checkpoint(self) -> bool:
        """Whether a checkpoint now would break off an episode that is longer than half of this life."""
        return self.lane_steps < min(2 * self.longest_steps, MOST_EPISODE_STEPS)
