"""Steps of neighboring cases that overlap: the next is read and the last written while the network runs."""

import logging
import threading
from collections.abc import Callable, Sequence
from queue import Queue
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Work = TypeVar("Work")


class MemoryGate:
    """Lets cases in while their estimated memory fits together; one alone always may, however large it is.

    Args:
        budget_mb: what all cases inside may take together.
    """

    def __init__(self, budget_mb: float) -> None:
        self.budget_mb = budget_mb
        self._inside: list[float] = []
        self._changed = threading.Condition()

    def enter(self, need_mb: float) -> None:
        """Wait until a case of `need_mb` fits beside those inside, or it is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside or sum(self._inside) + need_mb <= self.budget_mb)
            self._inside.append(need_mb)

    def leave(self, need_mb: float) -> None:
        """Give back what a case took."""
        with self._changed:
            self._inside.remove(need_mb)
            self._changed.notify_all()


class Pipeline(Generic[Work]):
    """Steps in threads of their own, with room for one piece of work between two of them.

    Args:
        steps: called one after the other with each piece of work, each by its own threads.
        lanes: threads of each step, one by default; where there are more, a piece of work may overtake another.
        initializer: called first in each thread.
        on_done: called by the last thread once all steps are through.
        on_failed: called with a piece of work and the error of a step, after which no further step sees it. What it
            raises itself is logged and goes no further: it must have told of the failure by then.
    """

    def __init__(
        self,
        steps: Sequence[Callable[[Work], None]],
        *,
        on_done: Callable[[Work], None],
        on_failed: Callable[[Work, Exception], None],
        lanes: Sequence[int] | None = None,
        initializer: Callable[[], None] | None = None,
    ) -> None:
        self._on_done, self._on_failed, self._initializer = on_done, on_failed, initializer
        self._stopped = threading.Event()
        self._queues: list[Queue[Work | None]] = [Queue(), *(Queue(maxsize=1) for _ in steps[1:])]
        self._at_work = list(lanes or [1] * len(steps))  # threads of each step that have not ended
        self._ending = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(step, number), daemon=True)
            for number, step in enumerate(steps)
            for _ in range(self._at_work[number])
        ]
        for thread in self._threads:
            thread.start()

    def put(self, work: Work) -> None:
        """Hand in a piece of work; never waits."""
        self._queues[0].put(work)

    def finish(self) -> None:
        """Wait until all work handed in is through."""
        self._queues[0].put(None)
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Begin no further step of any work except the last step of what waits for it; does not wait."""
        self._stopped.set()

    def _run(self, step: Callable[[Work], None], number: int) -> None:
        if self._initializer is not None:
            self._initializer()
        queue = self._queues[number]
        follower = self._queues[number + 1] if number + 1 < len(self._queues) else None
        while (work := queue.get()) is not None:
            if self._stopped.is_set() and follower is not None:
                continue
            try:
                step(work)
            except Exception as error:  # one bad case must not end the thread, and with it all further cases
                self._fail(work, error)
                continue
            if follower is not None:
                follower.put(work)
            else:
                self._on_done(work)
        with self._ending:
            self._at_work[number] -= 1
            last = not self._at_work[number]
        if not last:
            queue.put(None)  # for the next thread of this step
        elif follower is not None:
            follower.put(None)

    def _fail(self, work: Work, error: Exception) -> None:
        try:
            self._on_failed(work, error)
        except Exception as another:  # it must not end the thread either
            logger.warning("a failure could not be told (%s)", type(another).__name__)
            logger.debug("why it could not", exc_info=another)
