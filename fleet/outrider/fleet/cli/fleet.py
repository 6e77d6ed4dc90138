"""`outrider fleet …`: devices, rollouts, drift, triggers, jobs, audit and lineage, as tables or JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from outrider.fleet.cli import commands
from outrider.fleet.cli.labels import labels
from outrider.fleet.triggers import TRIGGERS
from outrider.runtime.api_client.connect import connect, connection_options
from outrider.runtime.arguments import Parser
from outrider.runtime.errors import EXIT_OK
from outrider.runtime.output import as_json

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[Parser]
    Add = Callable[[Subcommands, str, str, commands.Command], Parser]

PIPE_WIDTH = 400


def main(argv: Sequence[str]) -> int:
    """Run one fleet command; its answer goes to standard output."""
    arguments = _parser().parse_args(argv)
    command: commands.Command = arguments.run
    answer = command(connect(arguments), arguments)
    if arguments.json:
        print(as_json(answer.data))
    else:
        # Into a pipe, columns are as wide as they need to be.
        Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(answer.view, soft_wrap=True)
    return EXIT_OK


def _parser() -> Parser:
    parser = Parser(prog="outrider fleet", description="Look at the fleet and steer it.")
    top = parser.add_subparsers(required=True, metavar="COMMAND")
    common = connection_options()
    common.add_argument("--json", action="store_true", help="print the answer as JSON")

    def add(group: Subcommands, name: str, text: str, run: commands.Command) -> Parser:
        made: Parser = group.add_parser(name, help=text, description=_sentence(text), parents=[common])
        made.set_defaults(run=run)
        return made

    add(top, "devices", "list devices", commands.devices).add_argument("--group", help="of this group only")
    add(top, "bundles", "list published bundles", commands.bundles)
    add(top, "releases", "list releases", commands.releases).add_argument("--name", help="of this model only")
    add(top, "rollouts", "list rollouts", commands.rollouts)
    _add_rollout(top, add)
    events = add(top, "events", "list the steps of updates", commands.events)
    events.add_argument("--device", help="of this device only")
    events.add_argument("--rollout", type=int, help="of this rollout only")
    events.add_argument("--limit", type=int, default=1000, help="at most so many (default: 1000)")
    drift = add(top, "drift", "show drift events, and the profiles of a model", commands.drift)
    drift.add_argument("model", nargs="?", metavar="MODEL", help="the model's name (default: drift events of all)")
    add(top, "performance", "show accuracy on delayed labels", commands.performance).add_argument(
        "model", metavar="MODEL", help="the model's name"
    )
    add(top, "labels", "post the truth of predictions", labels).add_argument(
        "file", type=Path, metavar="FILE", help="CSV with the columns id and label"
    )
    add(top, "triggers", "list triggers", commands.triggers)
    _add_trigger(top, add)
    add(top, "jobs", "list retrain Jobs", commands.jobs)
    _add_job(top, add)
    audit = add(top, "audit", "show or check the audit log", commands.audit)
    audit.add_argument("--limit", type=int, default=100, help="the last so many entries (default: 100)")
    audit.add_argument("--verify", action="store_true", help="check the whole chain instead")
    audit.add_argument(
        "--known-head", metavar="HASH", help="with --verify: a head kept elsewhere, to find a cut-off end"
    )
    lineage = add(top, "lineage", "show what a release was made from and where it went", commands.lineage)
    lineage.add_argument("release", metavar="NAME:VERSION", help="the release")
    _add_token(top, add)
    _add_device(top, add)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _group(top: Subcommands, name: str, text: str) -> Subcommands:
    made = top.add_parser(name, help=text, description=_sentence(text))
    subcommands: Subcommands = made.add_subparsers(required=True, metavar="COMMAND")
    return subcommands


def _add_rollout(top: Subcommands, add: Add) -> None:
    group = _group(top, "rollout", "create, show or steer a rollout")
    create = add(group, "create", "roll a release out to a group", commands.create_rollout)
    create.add_argument("--bundle", required=True, metavar="NAME:VERSION", help="the release to roll out")
    create.add_argument("--group", default="default", help="the group of devices (default: default)")
    create.add_argument("--canary", type=int, default=1, help="so many devices first (default: 1)")
    create.add_argument("--soak-s", type=float, help="seconds of serving before a device commits")
    create.add_argument("--max-err", type=float, help="largest error on the golden vectors")
    create.add_argument("--p99-ms", type=float, help="largest latency on the golden vectors")
    create.add_argument("--jitter-s", type=float, help="spread the swaps over so many seconds")
    create.add_argument("--max-in-flight", type=int, help="devices that update at the same time")
    create.add_argument("--step-timeout-s", type=float, help="deadline of each step on an online device")
    create.add_argument("--attempts", type=int, help="tries for a device that fails")
    create.add_argument("--abort-percent", type=float, help="abort above so many percent of failures")
    create.add_argument("--abort-minimum", type=int, help="… once at least so many have failed")
    show = add(group, "show", "show a rollout and its deployments", commands.show_rollout)
    show.add_argument("id", type=int, metavar="ROLLOUT")
    for name, text, run in (
        ("pause", "give no further device the bundle", commands.pause_rollout),
        ("resume", "go on with a paused rollout", commands.resume_rollout),
        ("abort", "end a rollout for good", commands.abort_rollout),
    ):
        made = add(group, name, text, run)
        made.add_argument("id", type=int, metavar="ROLLOUT")
        made.add_argument("--reason", default="", help="for the audit log")


def _add_trigger(top: Subcommands, add: Add) -> None:
    group = _group(top, "trigger", "create a trigger")
    create = add(group, "create", "store a rule that opens retrain Jobs", commands.create_trigger)
    create.add_argument("name", metavar="NAME", help="what the trigger is called")
    create.add_argument("--model", required=True, help="the model's name")
    create.add_argument("--kind", required=True, help=" or ".join(TRIGGERS))
    create.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the kind, such as floor=0.93"
    )


def _add_job(top: Subcommands, add: Add) -> None:
    group = _group(top, "job", "open a Job")
    made = add(group, "open", "open a retrain Job by hand", commands.open_job)
    made.add_argument("--model", required=True, help="the model's name")
    made.add_argument("--reason", default="", help="for the worker and the audit log")


def _add_token(top: Subcommands, add: Add) -> None:
    group = _group(top, "token", "create an enrolment token")
    create = add(group, "create", "make a one-time token for one device", commands.create_token)
    create.add_argument("--group", default="default", help="the group that the device joins (default: default)")
    create.add_argument("--ttl-s", type=float, default=3600.0, help="seconds that it is good for (default: 3600)")


def _add_device(top: Subcommands, add: Add) -> None:
    group = _group(top, "device", "show or resolve a device")
    add(group, "show", "show a device", commands.show_device).add_argument("id", metavar="DEVICE")
    resolve = add(group, "resolve", "clear a device's flag", commands.resolve_device)
    resolve.add_argument("id", metavar="DEVICE")
    resolve.add_argument("--reason", default="", help="for the audit log")
