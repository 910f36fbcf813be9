"""Memories on the Hugging Face hub: a folder becomes one commit of a repository."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from wise.memory.model_card import CARD_FILE, keep_card


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str,
    commit_description: str | None,
) -> str:
    """Writes a saved memory to a repository, which is made if there is none; returns the address of the commit.

    A card that somebody has rewritten there is kept.
    """
    api = huggingface_hub.HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    if api.file_exists(repo_id, CARD_FILE, revision=revision):
        card = api.hf_hub_download(repo_id, CARD_FILE, revision=revision)
        keep_card(Path(card).parent, folder)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
        commit_description=commit_description,
    )
    return str(commit)
