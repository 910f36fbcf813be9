"""The part of the service that the routes of edits need: a store, its tokens, and the version that is served."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request

from wise.edits import DEFAULT_NAMESPACE
from wise.errors import EditError, checked_namespace, did_you_mean
from wise.memory.store.store import Store
from wise.serving.auth import Tokens, sees
from wise.serving.editor_client import send_to_writer
from wise.serving.engines import MemoryHandle
from wise.serving.fair_queue import FairQueue
from wise.serving.follower import Listener, ServedVersion
from wise.serving.http_errors import bad_request, not_found, unavailable
from wise.serving.settings import Settings
from wise.training.encoding import Encoder


class VersionSource(Protocol):
    """The version that is served, as it changes."""

    @property
    def current(self) -> ServedVersion: ...

    def listen(self) -> Listener: ...


class StoreService:
    """Accepts edits into a store whose writer is another process."""

    follower: VersionSource

    def __init__(self, settings: Settings, *, store: Store, tokens: Tokens, encoder: Encoder) -> None:
        """store: not opened as its writer."""
        self.settings, self.store, self.tokens, self.encoder = settings, store, tokens, encoder
        self.name = settings.served_name()
        self.previews = FairQueue(settings.preview_queue, settings.request_timeout)
        """The turns of previews: one at a time goes to the editor."""
        self.draining = threading.Event()
        """Set at shutdown: nothing new is accepted, and streams of events end."""

    @property
    def wrong_answers(self) -> Mapping[str, str]:
        """The engine's answers to live edits that it does not answer with the target, by edit id."""
        return {}

    def refuse_if_draining(self) -> None:
        """Raises HTTPError 503 at shutdown."""
        if self.draining.is_set():
            raise unavailable("the service is about to end; ask another replica, or try again")

    async def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Has the store's writer run a command. Raises as `EditorClient.call` and `send_to_writer` do."""
        return await send_to_writer(self.store, name, arguments)

    def namespace(self, model: str | None) -> str:
        """The namespace that a model's name means: `NAME`, or `NAME@NAMESPACE`. Raises HTTPError 404 for another name,
        and for a namespace that the holder of the request's token may not see; 400 for an invalid namespace."""
        name, at, space = (model or self.name).partition("@")
        namespace = DEFAULT_NAMESPACE
        if at and space.strip() and name == self.name:
            try:
                namespace = checked_namespace(space)
            except EditError as error:
                raise bad_request(f"model: {error}", "model") from error
        if name != self.name or (at and not space.strip()) or not sees(namespace):
            hint = did_you_mean(model or self.name, self.visible())
            raise not_found(f"model: {model or self.name!r:.80} is not served; {hint}", "model_not_found")
        return namespace

    def visible(self) -> dict[str, MemoryHandle]:
        """The memories of the namespaces that the holder of the request's token may see, by model name."""
        return {
            self.name if space == DEFAULT_NAMESPACE else f"{self.name}@{space}": handle
            for space, handle in self.follower.current.handles.items()
            if sees(space)
        }


def service_of(request: Request) -> Any:
    """The service of the request's application."""
    return request.app.state.service


StoreServiceDep = Annotated[StoreService, Depends(service_of)]
"""The parameter of a route that needs no engine."""
