"""``push_to=OWNER/NAME``: a folder with its model card becomes a repository of the hub.

The endpoint is ``HF_ENDPOINT``, the token that of ``HF_TOKEN`` or of ``hf auth login``. The token goes to the
endpoint alone: every message about a failed request is cleared of it, and of what led to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runner.config.settings import RunConfig
from runner.core import console
from runner.core.errors import ConfigError, Issue, RunnerError
from runner.models.hub import PATIENCE, offline
from runner.runs.run_folder import RunFolder

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_publish(config: RunConfig) -> None:
    """Check that the hub answers, and that its token may write to the repository. Raises
    ``ConfigError``.

    Takes seconds at most, also when the hub does not answer.
    """
    where = f"push_to={config.push_to}"
    if offline():
        raise ConfigError(Issue(where, "this machine is set to be offline", "unset HF_HUB_OFFLINE"))
    if _token() is None:
        raise ConfigError(Issue(where, "there is no token for the hub", _LOG_IN))
    found = _who(where)
    access = found.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise ConfigError(Issue(where, "the token may only read", _LOG_IN))
    owners = [found.get("name"), *(entry.get("name") for entry in found.get("orgs", ()))]
    owner = str(config.push_to).partition("/")[0]
    # a fine-grained token does not tell all organisations that it may write to
    if access.get("role") != "fineGrained" and owner not in owners:
        hint = f"yours: {', '.join(f'{name}/...' for name in owners if name)}"
        raise ConfigError(Issue(where, f"the token does not belong to {owner}", hint))


def publish(config: RunConfig, folder: RunFolder, source: Path, exported: Iterable[Path] = ()) -> None:
    """Upload all files of ``source`` as one commit, and record its address in the run's ``pushed``.

    ``exported`` files go beside them, folders under their own name. The repository is made if there is none.
    Raises ``RunnerError`` if the hub does not take it.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars

    repository = str(config.push_to)
    if not console.err.is_terminal:
        disable_progress_bars()
    exported = list(exported)
    files = _files(source, exported)
    failure = None
    try:
        with folder.timed("push"):
            api = _api()
            url = api.create_repo(repository, exist_ok=True)
            commit = api.create_commit(
                repo_id=repository,
                operations=[CommitOperationAdd(name, str(file)) for name, file in files.items()],
                commit_message=f"Upload by recipe={config.recipe}",
            )
    except Exception as error:  # the hub's client raises many kinds, all of which mean: it is not there
        failure = _clean(error)
    if failure is not None:  # raised out here, where no other error hangs on to it with what it holds
        named = {".": source} | {path.name: path for path in exported}
        hint = "; ".join(f"hf upload {repository} {path} {name}" for name, path in named.items())
        raise RunnerError(
            f"{repository} could not be uploaded: {failure}\n  it is complete here; later: {hint}"
        )
    folder.record["pushed"] = {"url": str(url), "commit": commit.oid, "commit_url": str(commit.commit_url)}
    names = ", ".join([f"{source.name}/", *(path.name for path in exported)])
    console.out.print(f"[bold]pushed[/] {names} to {url}")


def _files(source: Path, exported: Iterable[Path]) -> dict[str, Path]:
    """The files of an upload by their names in the repository."""
    files = {file.relative_to(source).as_posix(): file for file in source.rglob("*") if file.is_file()}
    for path in exported:
        inside = path.rglob("*") if path.is_dir() else [path]
        files |= {file.relative_to(path.parent).as_posix(): file for file in inside if file.is_file()}
    return dict(sorted(files.items()))


def _who(where: str) -> dict[str, Any]:
    """What the hub says about the token. Raises ``ConfigError``."""
    from runner.models.hub import within

    issue = None
    try:
        return within(PATIENCE, lambda: _api().whoami())
    except Exception as error:  # as above
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            issue = Issue(where, f"the hub does not accept the token ({status})", _LOG_IN)
        elif status is not None:
            issue = Issue(where, f"{_endpoint()} answered {status}", "try again later")
        else:
            message = f"{_endpoint()} cannot be reached ({type(error).__name__})"
            issue = Issue(where, message, "check the network, and HF_ENDPOINT if it is set")
    raise ConfigError(issue)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _endpoint() -> str:
    """``HF_ENDPOINT`` as it is now: the client's own is that of its import."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _clean(error: Exception) -> str:
    """The first line of a message, without the token."""
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    token = _token()
    return text.replace(token, "[token]") if token else text
