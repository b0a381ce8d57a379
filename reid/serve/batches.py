"""Jobs of several requests that are computed together."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any


class Busy(Exception):
    """The queue has no space; the same request may succeed later."""


class Batches:
    """One thread that calls work(jobs) -> one result per job, with at most `size` jobs.

    capacity: jobs that may wait. patience: seconds for which an incomplete batch waits for further jobs.
    """

    def __init__(self, work: Callable[[list], Any], size: int, capacity: int, patience: float = 0.0):
        self.work, self.size, self.capacity, self.patience = work, size, capacity, patience
        self.waiting: deque[tuple[Any, Future]] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self.run, name="batches", daemon=True)
        self.thread.start()

    def submit(self, jobs: Sequence) -> list[Future]:
        """One future per job. A job is left out if its future is cancelled in time. Raises Busy: all or none wait."""
        with self.changed:
            if self.closed or len(self.waiting) + len(jobs) > self.capacity:
                raise Busy
            futures: list[Future] = [Future() for _ in jobs]
            self.waiting.extend(zip(jobs, futures))
            self.changed.notify()
        return futures

    def take(self) -> list[tuple[Any, Future]]:
        """The next batch; it is empty after close()."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            self.changed.wait_for(lambda: len(self.waiting) >= self.size or self.closed, self.patience)
            return [self.waiting.popleft() for _ in range(min(self.size, len(self.waiting)))]

    def run(self) -> None:
        while batch := self.take():
            wanted = [(job, future) for job, future in batch if future.set_running_or_notify_cancel()]
            if not wanted:
                continue
            try:
                results = self.work([job for job, _ in wanted])
            except BaseException as e:  # it belongs to those who wait; the thread goes on
                for _, future in wanted:
                    future.set_exception(e)
            else:
                for (_, future), result in zip(wanted, results):
                    future.set_result(result)

    def close(self) -> None:
        """Computes what waits, refuses the rest."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()
