"""What runs in processes of their own: the making of a peer's file, and a contender in a race.

`make PEER ORDER` prints one line of JSON and ends. `race PEER ORDER FILE INPUTS OUTPUTS` loads, predicts all inputs
once, and then answers requests, a line of JSON each: `loop` runs calls and says their CPU time, `calls` says the wall
time of each call, `overhead` what our session adds. Nothing is imported at the top that bare Python has not loaded.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> None:
    """One of the two commands. What libraries write to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    what, *rest = arguments
    try:
        if what == "make":
            _answer(answers, _make(*rest))
        else:
            _race(answers, *rest)
    except Exception as e:  # of any library: the parent shows the one line
        if type(e).__name__ == "NotSupported":
            _answer(answers, {"unsupported": str(e)})
        else:
            line = " ".join(str(e).split())
            _answer(answers, {"failed": f"{type(e).__name__}: {line}"[:300]})
    answers.flush()
    os._exit(0)  # the tear-down of several of these libraries can crash, and says nothing of them


def _answer(answers: object, told: object) -> None:
    import json

    print(json.dumps(told), file=answers, flush=True)  # type: ignore[call-overload]


def _make(name: str, order: str) -> object:
    import time
    from pathlib import Path

    import msgspec
    from benchmarks.networks.peers import Order, peer

    start = time.perf_counter()
    made = peer(name).export(msgspec.json.decode(Path(order).read_bytes(), type=Order))
    if not made.seconds:
        made = msgspec.structs.replace(made, seconds=time.perf_counter() - start)
    return msgspec.to_builtins(made)


def _race(answers: object, name: str, order_file: str, path: str, inputs: str, outputs: str) -> None:
    import importlib
    import json
    import time
    from pathlib import Path

    import numpy as np
    from benchmarks.shared.memory import resident_mb

    bare = resident_mb()
    import msgspec
    from benchmarks.networks.peers import Order, peer

    rival, order = peer(name), msgspec.json.decode(Path(order_file).read_bytes(), type=Order)
    for module in rival.modules:
        importlib.import_module(module)
    call = rival.open(Path(path), order)
    loaded = np.load(inputs)
    first = {key: np.ascontiguousarray(loaded[key][:1]) for key in order.shapes}
    call(first)
    resident = resident_mb() - bare
    from benchmarks.networks.samples import one_by_one

    feeds = list(one_by_one({key: loaded[key] for key in order.shapes}))
    results = [[np.array(one) for one in call(feed)] for feed in feeds]
    np.savez(outputs, *(np.concatenate(column) for column in zip(*results, strict=True)))
    _answer(answers, {"rss_mb": resident})
    position = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if "overhead" in asked:
            _answer(answers, {"overhead_us": rival.overhead_us(feeds[0])})
            continue
        number = asked.get("loop") or asked["calls"]
        chosen = [feeds[(position + i) % len(feeds)] for i in range(number)]
        position += number
        if "loop" in asked:
            start = time.process_time_ns()
            for feed in chosen:
                call(feed)
            _answer(answers, {"ns": time.process_time_ns() - start})
        else:
            times = []
            for feed in chosen:
                begun = time.perf_counter_ns()
                call(feed)
                times.append(time.perf_counter_ns() - begun)
            _answer(answers, {"ns": times})


if __name__ == "__main__":
    main(sys.argv[1:])
