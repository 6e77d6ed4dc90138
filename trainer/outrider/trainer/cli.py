"""`outrider train` and `outrider worker`."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from outrider.runtime.api_client.connect import connect, connection_options
from outrider.runtime.arguments import Parser
from outrider.runtime.errors import EXIT_OK, UsageError
from outrider.runtime.trust.cli import default_key_path
from outrider.trainer.experiment import Run
from outrider.trainer.progress import Progress


def train(argv: Sequence[str]) -> int:
    """`outrider train RECIPE -o DIR`: train a model and show what it reached."""
    arguments = _train_parser().parse_args(argv)
    from outrider.trainer.training import train as run_training

    console = Console(stderr=True)
    with _live(console) as progress:
        result = run_training(arguments.recipe, arguments.out, arguments.until, runs=arguments.runs, progress=progress)
    Console().print(run_table(result.run))
    print(f"model: {result.model_dir}\nnext:  outrider compile {result.model_dir} --target host -o model.orb")
    return EXIT_OK


def worker(argv: Sequence[str]) -> int:
    """`outrider worker`: do retrain Jobs until it is stopped."""
    arguments = _worker_parser().parse_args(argv)
    recipes = dict(_assignment(text) for text in arguments.recipe)
    fleet = connect(arguments)
    from outrider.runtime.trust import load_private_key
    from outrider.trainer.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    log = logging.getLogger("outrider.worker")
    job_worker = Worker(
        fleet,
        recipes,
        load_private_key(arguments.key),
        arguments.workdir,
        poll_s=arguments.poll,
        name=arguments.name,
        progress=lambda stage, detail: log.info("%s: %s", stage, detail),
    )
    if arguments.once:
        job = job_worker.run_once()
        print("there is no open Job" if job is None else f"job {job.id}: {job.state} {job.detail or ''}")
        return EXIT_OK
    with _ends_on_sigterm():
        job_worker.run_forever()
    return EXIT_OK


def run_table(run: Run) -> Table:
    """What a Run reached, beside a model that always names the most frequent class."""
    table = Table(title=f"run {run.id}: {run.recipe}, {run.rounds} rounds, {run.seconds} s")
    for column in ("", "rows", "accuracy", "majority", "log loss", "majority", "AUC"):
        table.add_column(column, justify="left" if not column else "right")
    if run.metrics is not None:
        for name, figures in (("validation", run.metrics.valid), ("test", run.metrics.test)):
            table.add_row(
                name,
                str(figures.rows),
                f"{figures.accuracy:.4f}",
                f"{figures.majority_accuracy:.4f}",
                f"{figures.log_loss:.4f}",
                f"{figures.majority_log_loss:.4f}",
                "-" if figures.auc is None else f"{figures.auc:.4f}",
            )
    return table


def _train_parser() -> Parser:
    from outrider.trainer.recipe import bundled_recipes

    parser = Parser(prog="outrider train", description="Train a model from a recipe.")
    parser.add_argument("recipe", help=f"a TOML file, or one that is bundled: {', '.join(bundled_recipes())}")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the model directory to write")
    parser.add_argument("--until", metavar="TIME", help="use only rows older than this (ISO 8601, UTC)")
    parser.add_argument(
        "--runs", type=Path, metavar="FILE", help="where Runs are recorded (default: runs.db beside DIR)"
    )
    return parser


def _worker_parser() -> Parser:
    parser = Parser(
        prog="outrider worker", parents=[connection_options()], description="Do the fleet's retrain Jobs, until Ctrl-C."
    )
    parser.add_argument(
        "--recipe", action="append", required=True, metavar="MODEL=RECIPE", help="which recipe retrains which model"
    )
    key = default_key_path()
    parser.add_argument(
        "--key", type=Path, metavar="FILE", default=key, help=f"the private key that signs bundles (default: {key})"
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path("worker"), metavar="DIR", help="runs, models, state (default: worker)"
    )
    parser.add_argument("--poll", type=float, default=5.0, metavar="S", help="seconds between polls (default: 5)")
    parser.add_argument("--name", help="what the worker is called (default: host and process id)")
    parser.add_argument("--once", action="store_true", help="do one Job if there is one, then end")
    return parser


def _assignment(text: str) -> tuple[str, str]:
    model, _, recipe = text.partition("=")
    if not model or not recipe:
        raise UsageError(f"--recipe {text!r} is not MODEL=RECIPE", hint="for example card-fraud=card_fraud")
    return model, recipe


@contextlib.contextmanager
def _live(console: Console) -> Iterator[Progress]:
    """A spinner with the present stage; without a terminal, one line a stage."""
    if not console.is_terminal:
        told: set[str] = set()

        def line(stage: str, detail: str) -> None:
            if stage not in told:
                told.add(stage)
                console.print(f"{stage}: {detail}", highlight=False, soft_wrap=True)

        yield line
        return
    with console.status("starting") as status:
        yield lambda stage, detail: status.update(f"[bold]{stage}[/bold] {detail}")


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the worker as Ctrl-C does: at once, with the Job's state on disk."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"signal {number} at line {frame.f_lineno if frame else 0}")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
