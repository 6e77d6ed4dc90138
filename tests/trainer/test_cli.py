"""The commands `outrider train` and `outrider worker`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from outrider.compiler.modeldir import read_model_dir
from outrider.runtime.cli import main
from outrider.runtime.trust import generate_key, write_key_pair
from outrider.trainer.experiment import RunStore


def test_train_shows_what_was_reached(shop, tmp_path, capsys):
    out = tmp_path / "m"
    assert (
        main(["train", str(shop.recipe), "-o", str(out), "--until", "2019-02-20", "--runs", str(tmp_path / "r")]) == 0
    )
    shown = capsys.readouterr()
    assert re.search(r"test .*0\.9\d", shown.out)
    assert f"outrider compile {out}" in shown.out
    assert "train:" in shown.err
    assert read_model_dir(out).card.run.id == RunStore(tmp_path / "r").list()[0].id


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "nope", "-o", "m"], 1, "no recipe nope"),
        (["train", "RECIPE", "-o", "m", "--until", "soon"], 1, "the cutoff 'soon' is not a time"),
        (["worker", "--recipe", "x", "--key", "k"], 2, "not MODEL=RECIPE"),
        (["worker", "--recipe", "x=y", "--key", "k"], 1, "OUTRIDER_KEY"),
        (["worker", "--api-key", "k", "--recipe", "x=y", "--key", "gone"], 1, "cannot read the key gone"),
        (["worker", "--api-key", "k", "--recipe", "x=y", "--key", "KEY", "--url", "ftp://x"], 1, "not an http"),
        (["train", "--nonsense"], 2, "outrider train --help"),
        (["worker", "--nonsense"], 2, "outrider worker --help"),
    ],
)
def test_bad_input_is_one_clear_line(shop, tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    for name in ("OUTRIDER_KEY", "OUTRIDER_URL", "OUTRIDER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    write_key_pair(generate_key(), tmp_path, "publisher")
    known = {"RECIPE": str(shop.recipe), "KEY": "publisher.key"}
    assert main([known.get(argument, argument) for argument in arguments]) == code
    assert message in capsys.readouterr().err


def test_a_fleet_that_is_away_is_said_so(tmp_path, capsys, free_port):
    private, _ = write_key_pair(generate_key(), tmp_path, "publisher")
    url = f"http://127.0.0.1:{free_port}"
    arguments = ["--url", url, "--api-key", "k", "--recipe", "x=y", "--key", str(private), "--once"]
    assert main(["worker", *arguments, "--workdir", str(tmp_path / "w")]) == 70
    assert "does not answer" in capsys.readouterr().err


@contextlib.contextmanager
def outrider(*arguments, **kwargs):
    """The command as a process, which does not outlive the block."""
    command = [sys.executable, "-c", "import sys; from outrider.runtime.cli import main; sys.exit(main())"]
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **kwargs,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.system
def test_ctrl_c_ends_training_with_130_and_nothing_half_written(shop, shop_rows, tmp_path):
    shop.write(shop_rows(0, 60, a_day=500))
    recipe = shop.edit("rounds = 30\nearly_stopping = 5", "rounds = 100000\nearly_stopping = 100000")
    with outrider("train", str(recipe), "-o", str(tmp_path / "m")) as process:
        assert any("train:" in line for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.db", "shop"]
    (run,) = RunStore(tmp_path / "runs.db").list()
    assert run.state == "interrupted"


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_is_ended_by_a_signal(tmp_path, free_port, number):
    private, _ = write_key_pair(generate_key(), tmp_path, "publisher")
    environment = {**os.environ, "OUTRIDER_KEY": "k"}
    arguments = ["--url", f"http://127.0.0.1:{free_port}", "--recipe", "x=y", "--key", str(private)]
    with outrider("worker", *arguments, "--workdir", str(tmp_path / "w"), env=environment) as process:
        assert "trying again" in process.stderr.readline()
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(60) == 130
