"""The drift test's figures: pages without drift, windows until a page, labels until a breach.

Windows are drawn from the exact distribution over the bins of baselines that were learned from finite samples.
Run: python benchmarks/drift.py [--streams 200000] [--windows 24]
"""

from __future__ import annotations

import argparse
import time

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from outrider.fleet.drift import FeatureMonitor, FloorTest
from outrider.runtime.profile import BINS, Baseline, Window, learn_baseline

FEATURES = 100
ROWS = 1000


def learn(rng: np.random.Generator, rows: int) -> Baseline:
    """A baseline of standard normal features."""
    return learn_baseline(rng.normal(size=(rows, FEATURES)).astype(np.float32), [f"f{i}" for i in range(FEATURES)])


def chances(baseline: Baseline, shift: float = 0.0, scale: float = 1.0) -> NDArray[np.float64]:
    """How likely a value of N(shift, scale) is in each bin [f, 16]; and under and over the range, in two more."""
    layout = baseline.layout
    table = np.zeros((FEATURES, BINS + 2))
    for i, edges in enumerate(layout.edges):
        ends = np.flatnonzero(np.diff(layout.bin_of[i])).astype(int)
        finite = edges[np.isfinite(edges)]
        cuts = norm.cdf(np.concatenate([finite[:1], edges[ends], finite[-1:]]), shift, scale)
        table[i] = np.diff(cuts, prepend=0.0, append=1.0)
    return table


def draw(rng: np.random.Generator, baseline: Baseline, table: NDArray[np.float64], t: int) -> Window:
    """A window of 1,000 rows."""
    counts = rng.multinomial(ROWS, table)
    bins = counts[:, 1:-1].copy()
    bins[:, 0] += counts[:, 0]
    bins[:, -1] += counts[:, -1]
    return Window(
        fingerprint=baseline.fingerprint,
        start=t * 3600.0,
        end=(t + 1) * 3600.0,
        rows=ROWS,
        bins=bins,
        nulls=np.zeros(FEATURES, np.int64),
        outside=counts[:, 0] + counts[:, -1],
        scores=np.zeros(32, np.int64),
    )


def null_streams(rng: np.random.Generator, streams: int, windows: int) -> None:
    """Pages and the strongest evidence in streams that do not drift."""
    for reference in (500, 20_000):
        pages, strongest, cpu = 0, -np.inf, time.process_time()
        for _ in range(streams // FEATURES // 2):
            baseline = learn(rng, reference)
            table = chances(baseline)
            state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=10_000)
            for t in range(windows):
                state, signals = FeatureMonitor.update(state, draw(rng, baseline, table, t))
                pages += len(signals)
                strongest = max(strongest, *state.log_e)
        print(
            f"no drift, reference {reference:>6} rows: {pages} pages in {streams // 2} streams x {windows} windows, "
            f"largest E {np.exp(strongest):.2g}, {time.process_time() - cpu:.0f} s CPU"
        )


def detection(rng: np.random.Generator, runs: int) -> None:
    """Windows until a page at E >= 10^6, from a change after four windows on."""
    print(f"\nwindows of {ROWS} rows until E >= 10^6, reference 20,000 rows, {runs * FEATURES} streams each")
    print(f"{'change':>10} {'margin':>7} {'median':>7} {'90 %':>6} {'99 %':>6}")
    for shift, scale in ((0.5, 1.0), (0.3, 1.0), (0.2, 1.0), (0.0, 1.5)):
        for margin in (0.01, 0.015):
            delays = []
            for _ in range(runs):
                baseline = learn(rng, 20_000)
                before, after = chances(baseline), chances(baseline, shift, scale)
                state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=10_000, margin=margin)
                for t in range(4 + 20):
                    window = draw(rng, baseline, before if t < 4 else after, t)
                    state, signals = FeatureMonitor.update(state, window)
                    delays += [t - 3] * len(signals)
            delays += [99] * (runs * FEATURES - len(delays))
            name = f"+{shift} sigma" if shift else f"x{scale}"
            middle, most, nearly_all = np.percentile(delays, [50, 90, 99], method="inverted_cdf")
            print(f"{name:>10} {margin:>7} {middle:>7.0f} {most:>6.0f} {nearly_all:>6.0f}")


def cost(rng: np.random.Generator) -> None:
    """CPU and bytes of one stream of windows in the long run."""
    baseline = learn(rng, 20_000)
    table = chances(baseline)
    state = FeatureMonitor.new_state(baseline, alpha=0.01, streams=10_000)
    times = []
    for t in range(200):
        window = draw(rng, baseline, table, t)
        start = time.process_time_ns()
        state, _ = FeatureMonitor.update(state, window)
        times.append(time.process_time_ns() - start)
    size = len(msgspec.msgpack.encode(state)) / 1024
    print(f"\none update, {FEATURES} features, after 200 windows: {np.median(times) / 1e6:.1f} ms CPU, {size:.0f} KiB")


def floor(rng: np.random.Generator, runs: int) -> None:
    """The accuracy floor of 93 % at alpha = 0.05."""
    print("\naccuracy floor 93 %, alpha 0.05, 50 labels an update")
    for accuracy, limit in ((0.94, 20_000), (0.93, 20_000), (0.90, 1500), (0.85, 1500)):
        labels = []
        for _ in range(runs):
            state, breach, seen = FloorTest.new_state(0.93, alpha=0.05), None, 0
            while breach is None and seen < limit:
                state, breach = FloorTest.update(state, int(rng.binomial(50, accuracy)), 50)
                seen += 50
            if breach is not None:
                labels.append(seen)
        middle = f", median {np.median(labels):.0f}" if labels else ""
        print(f"true {accuracy:.0%}: {len(labels)} of {runs} breached within {limit} labels{middle}")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    null_streams(rng, args.streams, args.windows)
    detection(rng, args.runs)
    cost(rng)
    floor(rng, 30 * args.runs)


if __name__ == "__main__":
    main()
