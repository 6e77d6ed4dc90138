"""What counting costs a device: nanoseconds of CPU a value, and bytes a window. Run: python benchmarks/profiles.py"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np

from outrider.runtime.profile import Counter, ProfileTap, encode_window, learn_baseline


def cpu_ns(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Lowest and median CPU time of `work`, ns."""
    times = []
    for _ in range(repeats):
        start = time.process_time_ns()
        work()
        times.append(time.process_time_ns() - start)
    return min(times), float(np.median(times))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    names = [f"f{i}" for i in range(args.features)]
    baseline = learn_baseline(
        rng.normal(size=(20_000, args.features)).astype(np.float32), names, rng.beta(0.5, 3, 20_000)
    )
    tap = ProfileTap(Counter(baseline))
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, {args.features} features")
    print(f"{'batch':>6} {'ns a value, min':>16} {'median':>8} {'us a row, min':>14}")
    for batch in (1, 16, 256, 1024):
        rows = rng.normal(size=(8192, args.features)).astype(np.float32)
        scores = rng.beta(0.5, 3, 8192)
        calls = [(rows[i : i + batch], {"score": scores[i : i + batch]}) for i in range(0, len(rows), batch)]

        def run(calls: list[tuple[np.ndarray, dict[str, np.ndarray]]] = calls) -> None:
            for features, outputs in calls:
                tap.observe(features, outputs)

        best, median = cpu_ns(run, args.repeats)
        print(f"{batch:>6} {best / rows.size:>16.1f} {median / rows.size:>8.1f} {best / len(rows) / 1e3:>14.2f}")
    sizes = []
    for _ in range(20):
        counter = Counter(baseline)
        counter.observe(rng.normal(size=(1000, args.features)).astype(np.float32), rng.beta(0.5, 3, 1000))
        sizes.append(len(encode_window(counter.take(1.7e9, 1.7e9 + 3600), baseline)))
    print(f"a window of 1,000 rows in distribution: {np.mean(sizes):.0f} bytes on average, {max(sizes)} at most")


if __name__ == "__main__":
    main()
