"""The registry over HTTP: upload, list, and the bytes themselves."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated, BinaryIO

from fastapi import Header, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select

from outrider.fleet.artifacts import content_response
from outrider.fleet.auth import DEVICE_OR_OPERATOR
from outrider.fleet.db import BundleRow, DeploymentRow
from outrider.fleet.routes.wire import Caller, Operator, Records, State
from outrider.fleet.state import FleetState
from outrider.fleet.views import bundle_info
from outrider.runtime.api_client.types import BundleInfo
from outrider.runtime.bundle import MAX_BUNDLE_BYTES
from outrider.runtime.durable import storage_errors
from outrider.runtime.errors import BadMessageError, BundleTooLargeError, NotFoundError, UnsignedError

api = Records("registry")


@api.post("/bundles", upload=True)
async def publish_bundle(
    request: Request,
    state: State,
    caller: Operator,
    x_outrider_signature: Annotated[str, Header(description="base64 of the DSSE envelope")] = "",
) -> BundleInfo:
    """Publish a bundle: the body is the `.orb` file, the header its detached signature by a trusted publisher.

    The same bytes again change nothing; other bytes under the same name, version and target are a conflict.
    """
    envelope = _decode_signature(x_outrider_signature)
    with state.registry.incoming() as (path, file):
        await _receive(request, file)
        return await run_in_threadpool(_publish, state, path, envelope, caller.actor)


@api.get("/bundles")
def list_bundles(state: State) -> list[BundleInfo]:
    """All published bundles, newest first."""
    with state.database.read() as session:
        rows = session.scalars(select(BundleRow).order_by(BundleRow.created.desc(), BundleRow.sha256))
        return [bundle_info(row) for row in rows]


@api.get("/bundles/{sha256}")
def get_bundle(sha256: str, state: State) -> BundleInfo:
    """One published bundle."""
    return bundle_info(_find(state, sha256))


@api.get("/bundles/{sha256}/content", needs=(DEVICE_OR_OPERATOR,))
def get_bundle_content(sha256: str, request: Request, state: State, caller: Caller) -> Response:
    """The bundle's bytes, by range where asked; the ETag is the SHA-256.

    A device gets only the bundles that were deployed to it.
    """
    if caller.kind == "device" and not _deployed(state, caller.name, sha256):
        raise HTTPException(403, "this bundle was not deployed to this device")
    row = _find(state, sha256)
    return content_response(state.registry.path(sha256), row.sha256, row.size, request.headers)


async def _receive(request: Request, file: BinaryIO) -> None:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BUNDLE_BYTES:
            raise BundleTooLargeError(f"the upload is over {MAX_BUNDLE_BYTES} bytes")
        with storage_errors("take in the upload"):
            await run_in_threadpool(file.write, chunk)
    with storage_errors("take in the upload"):
        await run_in_threadpool(file.flush)


def _publish(state: FleetState, path: Path, envelope: bytes, actor: str) -> BundleInfo:
    return bundle_info(state.registry.publish(path, envelope, actor=actor, now=state.now()).row)


def _decode_signature(header: str) -> bytes:
    if not header:
        raise UnsignedError("the upload carries no X-Outrider-Signature", hint="use 'outrider publish'")
    try:
        return base64.b64decode(header, validate=True)
    except binascii.Error as e:
        raise BadMessageError("X-Outrider-Signature is not base64") from e


def _deployed(state: FleetState, device: str, sha256: str) -> bool:
    with state.database.read() as session:
        found = session.scalars(select(DeploymentRow.id).filter_by(device=device, bundle=sha256).limit(1))
        return found.first() is not None


def _find(state: FleetState, sha256: str) -> BundleRow:
    with state.database.read() as session:
        row = session.get(BundleRow, sha256)
    if row is None:
        raise NotFoundError(f"no bundle {sha256[:16]!r} is published")
    return row
