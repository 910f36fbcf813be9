"""A wrapped model's memory on disk and on the hub: written and read whole, without the base."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import PushToHubMixin

from wise.config import WiseConfig
from wise.errors import ArtifactError, ConfigError, UnsupportedModelError
from wise.memory.artifact import load_memory, save_memory
from wise.memory.fingerprint import Fingerprint
from wise.memory.state import MemoryState
from wise.router.readers import RelationReader


class SavedMemory(PushToHubMixin):
    """What `WiseModel` can do with folders and hub ids."""

    if TYPE_CHECKING:
        wise_config: WiseConfig
        state: MemoryState

        def __init__(
            self,
            model: PreTrainedModel,
            tokenizer: PreTrainedTokenizerBase,
            config: WiseConfig,
            *,
            reader: RelationReader | None = None,
        ) -> None: ...
        def fingerprint(self) -> Fingerprint: ...
        def unwrap(self) -> PreTrainedModel: ...
        def _start_from(self, state: MemoryState) -> None: ...

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the settings and the memory, never the base, to a folder; whole or not at all.

        With `push_to_hub` the memory goes to the hub as well, to `repo_id` or else a repository of the
        folder's name; `kwargs` are those of `push_to_hub`, which is transformers' own.

        Raises ArtifactError, with nothing written, where the folder holds anything but a memory.
        """
        save_memory(
            save_directory,
            config=self.wise_config,
            state=self.state,
            base=self.fingerprint(),
        )
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).resolve().name, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        path: str | PathLike[str],
        *,
        reader: RelationReader | None = None,
        **kwargs: Any,
    ) -> Self:
        """Wraps `model` with the memory saved at `path`, a folder or a hub id; `kwargs` as for `load_memory`.

        reader: the one that its keys were made with, as for `wise.wrap` (`hybrid`).

        Raises ArtifactError, with `model` as it was, where the memory is incomplete, damaged, or was made for
        another base.
        """
        config, state, base = load_memory(path, **kwargs)
        try:
            wrapped = cls(model, tokenizer, config, reader=reader)
        except (ConfigError, UnsupportedModelError) as error:
            raise ArtifactError(
                f"the memory at {path} stands beside {base.path} of a {base.model_type} base and does not "
                f"fit this model: {error}"
            ) from error
        try:
            base.check(wrapped.fingerprint())
            wrapped._start_from(state)
        except BaseException:
            wrapped.unwrap()
            raise
        return wrapped
