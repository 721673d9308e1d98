"""Which shards are left to do, and what to do when a worker dies at one; the same for every launcher."""

from __future__ import annotations

import logging
from collections import Counter, deque

from autodistill_sam3.distributed.rounds import Round, Shard
from autodistill_sam3.errors import LabelingError
from autodistill_sam3.labeling.attempts import note_death

logger = logging.getLogger("autodistill_sam3")

# Deaths of a worker's kind in a row that no image can have caused.
_MAX_IDLE_DEATHS = 2


class Ledger:
    """Hands out shards, each to one worker at a time.

    Args:
        round_: The shards.
    """

    def __init__(self, round_: Round) -> None:
        self._waiting = deque(shard for shard in round_.shards if not shard.is_complete)
        self._finished = {shard.index: shard.left for shard in round_.shards if shard.is_complete}
        self._in_hand: dict[int, Shard] = {}
        self._idle_deaths: Counter[str] = Counter()
        self.total = sum(round_.left)

    @property
    def finished(self) -> int:
        """How many images are."""
        return sum(self._finished.values())

    @property
    def waiting(self) -> int:
        """How many shards no worker has in hand."""
        return len(self._waiting)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return not self._waiting and not self._in_hand

    def take(self) -> Shard | None:
        """The next shard; None if there is none at the moment."""
        if not self._waiting:
            return None
        shard = self._waiting.popleft()
        self._in_hand[shard.index] = shard
        return shard

    def progressed(self, shard: Shard, finished: int) -> None:
        """Note how many images of a shard are finished."""
        self._finished[shard.index] = finished

    def done(self, shard: Shard, worker: str) -> None:
        """Note that a shard is complete."""
        del self._in_hand[shard.index]
        self._finished[shard.index] = shard.left
        del self._idle_deaths[worker]

    def died(self, worker: str, shard: Shard | None, how: str, last_words: str = "") -> None:
        """Note that a worker died; its shard is the next to be handed out.

        Args:
            worker: What kind it was of, such as its device.
            shard: What it had in hand.
            how: What killed it.
            last_words: The end of what it said.

        Raises:
            LabelingError: It died again before it tried any image, so that no image is at fault.
        """
        suspects = []
        if shard is not None:
            del self._in_hand[shard.index]
            self._waiting.appendleft(shard)
            suspects = note_death(shard.part, how)
        logger.warning("The worker on %s died (%s) with %d images in hand; %s", worker, how, len(suspects),
                       "they are tried one by one" if suspects else "starting another one")  # fmt: skip
        self._idle_deaths[worker] = 0 if suspects else self._idle_deaths[worker] + 1
        if self._idle_deaths[worker] >= _MAX_IDLE_DEATHS:
            raise LabelingError(
                f"The worker on {worker} died {_MAX_IDLE_DEATHS} times before it tried any image: {how}. "
                f"What was finished stays valid; the same command goes on.{last_words and f' It said: {last_words}'}"
            )
