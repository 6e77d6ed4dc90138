"""The payload of every MQTT message, as immutable records.

Times are seconds since the epoch, UTC (float). Sizes are bytes. `boot_id` is new at every start of the daemon,
`seq` rises by one with each event of that boot; (device, boot_id, seq) identifies a message for ever.
The JSON Schemas are in `docs/schema/`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from outrider.runtime.messages.topics import Identifier
from outrider.runtime.target import Requirements, Target

VERSION = 1
BLOCK_BYTES = 128 * 1024
MAX_DESIRED_BYTES = 8 * 1024

# What a device says of itself is bounded in number and length: the fleet keeps it, and looks it up.
MAX_SLOTS = 64
MAX_TRIALS = 32
TRIAL_DETAIL_CHARS = 256
LABEL_CHARS = 128
Label = Annotated[str, Meta(max_length=LABEL_CHARS)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Version = Literal[1]

State = Literal[
    "OFFERED",
    "ADMITTED",
    "FETCHING",
    "VERIFIED",
    "STAGED",
    "PROBING",
    "ARMED",
    "SOAKING",
    "COMMITTED",
    "ROLLED_BACK",
    "REJECTED",
    "FAILED",
    "SUPERSEDED",
]
TERMINAL_STATES: frozenset[State] = frozenset({"COMMITTED", "ROLLED_BACK", "REJECTED", "FAILED", "SUPERSEDED"})


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all messages."""


# Desired state, from the fleet to one device ---------------------------------------------------------------


class Health(_Message, frozen=True, kw_only=True):
    """What must hold before a bundle is committed.

    `max_err` widens or narrows the golden tolerance: None keeps the bundle's own. `p99_ms` None: no limit.
    `soak_s` is how long the new bundle serves before it is committed.
    """

    max_err: float | None = None
    p99_ms: float | None = None
    soak_s: float = 10.0


class Activate(_Message, frozen=True, kw_only=True):
    """When to swap: not before `after`, then at a random moment within `jitter_s` seconds."""

    after: float = 0.0
    jitter_s: float = 0.0


class Delta(_Message, frozen=True, kw_only=True):
    """A patch that turns the bundle `from_sha256` into the wanted one."""

    from_sha256: Sha256
    alg: str
    sha256: Sha256
    size: int


class ArtifactNeed(_Message, frozen=True, kw_only=True):
    """What one artifact of the wanted bundle needs, so that a device can refuse before it fetches a byte."""

    format: str
    abi: int
    package: str | None
    needs: Requirements


class SlotDesired(_Message, frozen=True, kw_only=True):
    """The bundle that one slot shall run. `release` is the fleet's release number, which the rollback floor limits.

    `signature` is the bundle's detached DSSE envelope as JSON text, so that it needs no fetch of its own.
    `urls` are HTTP sources; empty means MQTT blocks only.
    """

    bundle: Sha256
    size: int
    name: str
    version: str
    release: int
    target: str
    signature: str
    artifacts: tuple[ArtifactNeed, ...]
    urls: tuple[str, ...] = ()
    deltas: tuple[Delta, ...] = ()
    health: Health = Health()
    activate: Activate = Activate()


class Desired(_Message, frozen=True, kw_only=True):
    """What the fleet wants of one device. It travels as the payload of a DSSE envelope.

    `rev` only rises. A deliberate rollback is a new `rev` naming an older release, not below `rollback_floor`.
    """

    v: Version
    tenant: Identifier
    device: Identifier
    rev: int
    issued: float
    not_after: float
    job: str
    attempt: int
    rollback_floor: int
    slots: dict[str, SlotDesired]


# From a device to the fleet ----------------------------------------------------------------------------------


class Presence(_Message, frozen=True, kw_only=True):
    """Whether the device is there; `online: false` is its will."""

    v: Version
    boot_id: Label
    session: Label
    online: bool
    at: float


class BundleRef(_Message, frozen=True, kw_only=True):
    """A bundle in a slot."""

    sha256: Sha256
    name: Label
    version: Label


class SlotReport(_Message, frozen=True, kw_only=True):
    """What one slot holds and how far its update is."""

    active: BundleRef | None = None
    previous: BundleRef | None = None
    staging: BundleRef | None = None
    state: State | None = None
    job: Label | None = None
    attempt: int | None = None


class Disk(_Message, frozen=True, kw_only=True):
    """Bytes of the file system that holds the slots."""

    total: int
    free: int


class Reported(_Message, frozen=True, kw_only=True):
    """The device's whole state, retained. `revision` is the last desired revision that it applied."""

    v: Version
    boot_id: Label
    seq: int
    at: float
    revision: int
    slots: Annotated[dict[str, SlotReport], Meta(max_length=MAX_SLOTS)]
    disk: Disk
    runtime: Label
    target: Target


class ArtifactTrial(_Message, frozen=True, kw_only=True):
    """What a device found of one artifact of a bundle, by its candidate's id, when it probed them all.

    `kept` marks the one that the slot runs. `p50_ms` and `p99_ms` are percentiles of a call's duration, milliseconds,
    None where none was timed; `rss_bytes` is the peak memory of the process that tried it, 0 where it is not known.
    `reason` is empty where it passed, otherwise a machine-readable code; `detail` says it in words.
    """

    candidate: Label
    passed: bool
    kept: bool = False
    p50_ms: float | None = None
    p99_ms: float | None = None
    rss_bytes: int = 0
    reason: Label = ""
    detail: Annotated[str, Meta(max_length=TRIAL_DETAIL_CHARS)] = ""


Trials = Annotated[tuple[ArtifactTrial, ...], Meta(max_length=MAX_TRIALS)]


class Event(_Message, frozen=True, kw_only=True):
    """One step of the update state machine. `reason` is a short machine-readable code, `detail` says it in words.

    `trials` stands in the step that ends the probe of a bundle of several artifacts, in the order of their ranks; it
    is left out elsewhere.
    """

    v: Version
    boot_id: Label
    seq: int
    at: float
    slot: Label
    job: Label
    attempt: int
    from_state: State | None
    to_state: State
    bundle: Sha256
    reason: Label = ""
    detail: str = ""
    trials: Trials | UnsetType = UNSET


class Stat(_Message, frozen=True, kw_only=True):
    """One window of counts. `window` is an encoded `outrider.runtime.profile.Window`."""

    v: Version
    boot_id: Label
    seq: int
    slot: Label
    bundle: Sha256
    start: float
    end: float
    rows: int
    window: bytes


class Prediction(_Message, frozen=True, kw_only=True):
    """One prediction that a label may later be joined to. `score_bin` is 0..31 over the unit interval."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    score_bin: int
    prediction: int | float | str
    at: float


class Predictions(_Message, frozen=True, kw_only=True):
    """A batch of predictions by one bundle."""

    v: Version
    boot_id: Label
    seq: int
    slot: Label
    bundle: Sha256
    predictions: tuple[Prediction, ...]


class BlockRequest(_Message, frozen=True, kw_only=True):
    """Asks for `n` blocks of a bundle from block `index` on; each block is `BLOCK_BYTES` long, the last one shorter."""

    v: Version
    sha256: Sha256
    index: int
    n: int


class Block(_Message, frozen=True, kw_only=True):
    """One block of a bundle, on `dn/blk/{sha256}`."""

    v: Version
    index: int
    data: bytes


class Reply(_Message, frozen=True, kw_only=True):
    """The answer to a command, with the command's correlation data as `id`."""

    v: Version
    id: str
    ok: bool
    body: dict[str, str]
