"""`/v1/versions`: what was served when, what changed, and the way back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool

from wise.edits import Edit
from wise.memory.store.edit_request import Version
from wise.serve.access import Admin, Reader, Served
from wise.serve.edit_schemas import DiffAnswer, EditShort, RollbackRequest, VersionList, VersionView
from wise.serve.edits import served_from
from wise.serve.logs import audited
from wise.serve.problems import conflict, missing
from wise.serve.service import Service

router = APIRouter(prefix="/v1", tags=["versions"])
Number = Annotated[int, Path(ge=0, lt=2**63)]


@router.get("/versions")
def listed(service: Served, _: Reader) -> VersionList:
    """All versions, from the first, which is the base without edits."""
    found = [service.store.journal.version(0), *service.store.journal.versions()]
    return VersionList(current=service.follower.current.version, data=[VersionView.of(one) for one in found])


@router.get("/versions/{number}")
def looked_at(number: Number, service: Served, _: Reader) -> VersionView:
    return VersionView.of(_version(service, number))


@router.get("/versions/{number}/diff")
def diff(
    number: Number,
    service: Served,
    _: Reader,
    against: Annotated[int | None, Query(ge=0, lt=2**63, description="The version before, if left out.")] = None,
) -> DiffAnswer:
    """What turns the version `against` into this one."""
    after = _readable(service, number)
    before = _readable(service, after.parent if against is None else against)
    found = service.store.diff(before.number, after.number)
    return DiffAnswer(
        before=before.number,
        after=after.number,
        added=[_short(edit) for edit in found.added],
        removed=[_short(edit) for edit in found.removed],
        changed=[(_short(old), _short(new)) for old, new in found.changed],
    )


@router.post("/versions/{number}/rollback")
async def rollback(
    number: Number, request: Request, service: Served, holder: Admin, body: RollbackRequest | None = None
) -> VersionView:
    """Makes the memory of an earlier version current again, bit for bit, as a new one; answered once that is served."""
    await run_in_threadpool(_readable, service, number)
    reason = body.reason if body else None
    told = await run_in_threadpool(
        service.command, "rollback", version=number, author=holder.name, reason=reason
    )
    audited("rollback", by=holder.name, request=request.state.request_id, to=number, version=told["number"])
    await served_from(service, told["number"])
    return VersionView(**{name: value for name, value in told.items() if name != "manifest"})


def _version(service: Service, number: int) -> Version:
    current = service.store.journal.version()
    if number > current.number:
        raise missing(f"there is no version {number}; the last is {current.number}", "version_not_found")
    return service.store.journal.version(number)


def _readable(service: Service, number: int) -> Version:
    version = _version(service, number)
    if version.collected:
        raise conflict(f"version {number} was collected and can no longer be read")
    return version


def _short(edit: Edit) -> EditShort:
    return EditShort(id=edit.id, prompt=edit.prompt, target=edit.target, namespace=edit.namespace)
