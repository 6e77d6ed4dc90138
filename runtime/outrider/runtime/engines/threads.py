"""Large batches over several threads: a pool that stays, and the decision how far to split."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from outrider.runtime.errors import UsageError

_WORTH_NS = 100_000  # of work that a thread should have: to hand it over costs some 20,000
_ALIGNED = 64  # rows: what kernels for batches take at a time


class RowThreads:
    """Runs a function over the rows of a batch, split over up to `count` threads where that pays.

    How long a row takes is learned from the batches that ran. Raises UsageError for a count below 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UsageError(f"{count} threads cannot run anything", hint="threads=1 is the least")
        self.count = count
        self._ns_a_row: float | None = None
        self._pool = ThreadPoolExecutor(count - 1, "outrider-rows") if count > 1 else None

    @property
    def least(self) -> int:
        """Rows of the largest batch that is certainly not split."""
        return _ALIGNED

    def each(self, batch: int, run: Callable[[slice], None]) -> None:
        """Call `run` for slices that make up the batch, side by side; the first one here. Raises what it raises."""
        if batch == 0:
            return
        parts = split(batch, self.count, self._ns_a_row)
        pool = self._pool
        if pool is None or (len(parts) == 1 and self._ns_a_row is not None):
            run(slice(0, batch))
            return
        others = self._hand_over(pool, run, parts[1:])
        start = time.perf_counter_ns()
        try:
            run(parts[0])
        finally:
            self._ns_a_row = (time.perf_counter_ns() - start) / (parts[0].stop - parts[0].start)
            for other in others:
                other.exception()  # nothing may run on when this call is over
        for other in others:
            other.result()
        for part in parts[1 + len(others) :]:
            run(part)

    def _hand_over(
        self, pool: ThreadPoolExecutor, run: Callable[[slice], None], parts: Sequence[slice]
    ) -> list[Future[None]]:
        """Give the pool the parts, in order; not all where it was closed meanwhile or no thread can be had."""
        others: list[Future[None]] = []
        try:
            for part in parts:
                others.append(pool.submit(run, part))
        except RuntimeError:
            self._pool = None
            pool.shutdown()  # waits: what could not be given may be in the pool's queue all the same
        return others

    def close(self) -> None:
        """End the threads, once they are idle."""
        pool = self._pool
        if pool is not None:
            pool.shutdown(wait=False)


def split(batch: int, threads: int, ns_a_row: float | None) -> list[slice]:
    """The slices of a batch: one where it is not known to be worth more, else of equal numbers of 64 rows.

    >>> split(1000, 2, 1000.0)
    [slice(0, 512, None), slice(512, 1000, None)]
    >>> split(1000, 2, 10.0)
    [slice(0, 1000, None)]
    """
    worth = 1 if ns_a_row is None else int(batch * ns_a_row / _WORTH_NS)
    parts = max(1, min(threads, worth, -(-batch // _ALIGNED)))
    rows = -(-batch // (parts * _ALIGNED)) * _ALIGNED
    return [slice(start, min(start + rows, batch)) for start in range(0, batch, rows)]
