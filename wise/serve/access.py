"""What a route is given: the service, and who asks, checked against the scope that the route needs."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from wise.serve.problems import DENIED, Problem
from wise.serve.security import ADMIN, EDITOR, READER, Holder
from wise.serve.service import Service

_bearer = HTTPBearer(auto_error=False, description="A token of `wise token`.")


def served(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Served = Annotated[Service, Depends(served)]


Given = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def needs(scope: str) -> Callable[[Service, Request, HTTPAuthorizationCredentials | None], Holder]:
    """A dependency that lets in those whose token has this scope."""

    def holder(service: Served, request: Request, given: Given) -> Holder:
        found = None if given is None else service.tokens.holder(given.credentials)
        if found is None:
            what = "no token was given" if given is None else "the token is not known"
            raise _stranger(f"{what}; send the header 'Authorization: Bearer TOKEN'", "invalid_api_key")
        if found.expired:
            when = found.expired.isoformat(timespec="seconds")
            raise _stranger(f"the token of {found.name} expired at {when}; have a new one made", "expired_api_key")
        if not found.may(scope):
            raise Problem(
                HTTPStatus.FORBIDDEN,
                f"the token of {found.name} has the scope {found.scope}, and this needs {scope}",
                type=DENIED,
                code="insufficient_scope",
            )
        request.state.holder = found.name
        return found

    return holder


def _stranger(message: str, code: str) -> Problem:
    headers = {"WWW-Authenticate": "Bearer"}
    return Problem(HTTPStatus.UNAUTHORIZED, message, type=DENIED, code=code, headers=headers)


def watching(service: Served, request: Request, given: Given) -> None:
    """A dependency that lets in readers, or anyone where `open_metrics` is set."""
    if not service.settings.open_metrics:
        needs(READER)(service, request, given)


Reader = Annotated[Holder, Depends(needs(READER))]
Editor = Annotated[Holder, Depends(needs(EDITOR))]
Admin = Annotated[Holder, Depends(needs(ADMIN))]
