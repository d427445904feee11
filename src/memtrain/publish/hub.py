"""An exported folder on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from memtrain.errors import UserError, first_line


def check(repository: str) -> None:
    """Before any work: whether the name is one, and whether there is a token. Raises :class:`UserError`."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: {first_line(error)}; write it as OWNER/NAME") from None
    if get_token() is None:
        raise UserError("--push-to-hub needs a token of the hub: run hf auth login, or set HF_TOKEN")


def push(folder: Path, repository: str, private: bool) -> str:
    """Create the repository where it is not there, and upload the folder; returns its address.

    Files that are already there and no longer in the folder stay. Raises :class:`UserError` where the hub refuses or
    cannot be reached, and where ``private`` is asked for and the repository is public already.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi()
    flag = " --private" if private else ""
    again = f"the folder is whole, try again with: hf upload {repository} {folder}{flag}"
    refusals = (errors.HTTPError, OSError, ValueError, RuntimeError)  # HTTPError: of the HTTP library of this release
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise UserError(
                f"{repository} is there already and public; make it private on the hub, or leave out --private"
            )
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Exported by memtrain")
    except refusals as error:
        raise UserError(f"the push to {repository} failed ({first_line(error)}); {again}") from None
    return str(address)
