"""Saves the memory of a wrapped model to a folder or to the Hugging Face hub, and puts a saved one around its base.

These functions are methods of `wise.WiseModel`. The files are described in `wise.memory.artifact`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import huggingface_hub
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wise.errors import ArtifactError, ConfigError, UnsupportedModelError
from wise.loading import loaded, named_base
from wise.memory.artifact import load_memory, save_memory
from wise.memory.model_card import CARD_FILE, HUB_ID, keep_card

if TYPE_CHECKING:
    from wise.model import WiseModel
    from wise.router.readers import RelationReader


def save_pretrained(
    self: WiseModel,
    save_directory: str | PathLike[str],
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **kwargs: Any,
) -> None:
    """Writes the settings, the memory and a model card, never the base, to a folder; whole or not at all.

    Every live edit is in it as plain text, and the name of the base, which may be a folder.

    With `push_to_hub` the memory goes to the hub as well, to `repo_id` or else a repository of the folder's name;
    `kwargs` are those of `push_to_hub`.

    Raises ArtifactError, with nothing written, where the folder holds anything but a memory.
    """
    save_memory(save_directory, config=self.wise_config, state=self.state, base=self.fingerprint())
    if push_to_hub:
        self.push_to_hub(repo_id or Path(save_directory).resolve().name, **kwargs)


def push_to_hub(
    self: WiseModel,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a side memory",
    commit_description: str | None = None,
) -> str:
    """Writes the memory to a repository on the hub, which is made if there is none; the address of the commit.

    The same is written as by `save_pretrained`, but the base and the sentence encoder are named only if they are on
    the hub, and a file of relations is not named. A card that somebody has rewritten there is kept. `private=None`
    leaves it to the hub, which makes repositories public.
    """
    base, config = self.fingerprint(), replace(self.wise_config, relations=None)
    if not _on_hub(base.name):
        base = replace(base, name="", revision="")
    if not _on_hub(config.encoder or ""):
        config = replace(config, encoder=None)
    with TemporaryDirectory() as folder:
        memory = Path(folder, "memory")
        save_memory(memory, config=config, state=self.state, base=base)
        api = huggingface_hub.HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if api.file_exists(repo_id, CARD_FILE, revision=revision):
            card = api.hf_hub_download(repo_id, CARD_FILE, revision=revision)
            keep_card(Path(card).parent, memory)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=memory, revision=revision, create_pr=create_pr, commit_message=commit_message,
            commit_description=commit_description,
        )
    return str(commit)


def _on_hub(name: str) -> bool:
    """Whether a name is one of the hub. A folder of this machine may look like it."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def from_pretrained(
    cls: type[WiseModel],
    /,
    path: str | PathLike[str],
    model: PreTrainedModel | str | PathLike[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    reader: RelationReader | None = None,
    allow_precision: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **kwargs: Any,
) -> WiseModel:
    """The memory saved at `path`, a folder or a hub id, around its base; `kwargs` as for `load_memory`.

    model: the base, or its folder or hub id; None loads the one that the memory names, in the precision in which it
    was edited.
    tokenizer: None takes the one beside the base.
    reader: the one that its keys were made with, as for `wise.wrap` (`hybrid`).
    allow_precision: take a memory that was made on this base in another precision (a cast or quantized copy). Every
    edit is then asked again, and all stay live: `precision_report` says which hold, and so does the log. `progress`
    is called with how many were asked, and of how many.

    Raises ArtifactError, with `model` as it was, where the memory is incomplete, damaged, was made for another base
    or in another precision that is not allowed, or names no base that can be loaded.
    """
    if not isinstance(path, str | PathLike):
        raise ArtifactError(
            f"from_pretrained() takes the path of a memory first, and then its base and tokenizer: a "
            f"{type(path).__name__} was given as the path"
        )
    config, state, base = load_memory(path, **kwargs)
    try:
        base_model, tokenizer = loaded(named_base(base) if model is None else model, tokenizer)
    except ConfigError as error:
        raise ArtifactError(f"the base of the memory at {path} cannot be loaded: {error}") from error
    try:
        wrapped = cls(base_model, tokenizer, config, reader=reader)
    except (ConfigError, UnsupportedModelError) as error:
        raise ArtifactError(
            f"the memory at {path} stands beside {base.path} of a {base.model_type} base and does not "
            f"fit this model: {error}"
        ) from error
    try:
        same = base.check(wrapped.fingerprint(), allow_precision=allow_precision)
        wrapped.start_from(state, base)
        if not same:
            wrapped.precision_report = wrapped.ask_again(state, base, progress=progress)
    except BaseException:
        wrapped.unwrap()
        raise
    return wrapped
