"""A model repository of the hub: looked at first, then filled by one commit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token

from mergebench_ray.commands.publication import PublishedFile
from mergebench_ray.errors import InputError, one_line

_OF_THE_HUB = {".gitattributes"}


@dataclass(frozen=True)
class Repository:
    """What is known of a repository before anything is sent.

    Attributes:
        repo: OWNER/NAME.
        exists: whether it is there.
        private: whether others cannot see it, or will not.
        commit: its last one; None where it is not there.
        files: what is in it.
    """

    repo: str
    exists: bool
    private: bool
    commit: str | None = None
    files: frozenset[str] = frozenset()

    @property
    def url(self) -> str:
        """Its page."""
        return f"{constants.ENDPOINT}/{self.repo}"


def is_offline() -> bool:
    """Whether the hub may not be asked."""
    return bool(constants.HF_HUB_OFFLINE)


def look_at(repo: str, *, public: bool, replace: bool) -> Repository:
    """Find out, without changing anything, whether a repository can be filled.

    Args:
        repo: OWNER/NAME.
        public: whether everybody is to see it.
        replace: whether what is in it may be replaced.

    Raises:
        InputError: there is no token, or not for this owner; there is something else in it; others see it and were
            not meant to.
    """
    if get_token() is None:
        raise InputError(f"{repo}: there is no token for {constants.ENDPOINT}; run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _explained(repo):
        user = api.whoami()
        names = [user["name"], *(one["name"] for one in user.get("orgs", []))]
        owner = repo.partition("/")[0]
        if owner.lower() not in map(str.lower, names):
            raise InputError(
                f"{repo}: the token is of {user['name']}, who is not {owner} nor in it; own: {', '.join(names)}"
            )
        try:
            info = api.model_info(repo)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError:
            return Repository(repo, exists=False, private=not public)
    files = frozenset(one.rfilename for one in info.siblings or []) - _OF_THE_HUB
    if files and not replace:
        some = ", ".join(sorted(files)[:3])
        raise InputError(
            f"{repo} exists already and holds {len(files)} files ({some}{', …' if len(files) > 3 else ''}): choose "
            "another name, or put this model in their place with --replace"
        )
    if not info.private and not public:
        raise InputError(f"{repo} exists already and everybody sees it: give --public to publish there")
    return Repository(repo, exists=True, private=bool(info.private), commit=info.sha, files=files)


def fill(repository: Repository, files: Sequence[PublishedFile], message: str) -> str:
    """Make the repository if it is not there, and send all files in one commit, which replaces what is in it.

    Args:
        repository: as it was looked at; nothing is sent where it has changed since.
        files: what goes into it.
        message: of the commit.

    Returns:
        the address of the commit.

    Raises:
        InputError: it cannot be made or filled; nobody sees a part of the model.
    """
    api = HfApi()
    names = {file.name for file in files}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(file.name, str(file.content) if isinstance(file.content, Path) else file.content)
        for file in files
    ]
    operations += [CommitOperationDelete(name) for name in sorted(repository.files - names)]
    with _explained(repository.repo, "nothing of the model is visible there; start the same command again"):
        if not repository.exists:
            api.create_repo(repository.repo, private=repository.private)
        commit = api.create_commit(repository.repo, operations, commit_message=message, parent_commit=repository.commit)
    return str(commit.commit_url)


@contextmanager
def _explained(repo: str, remedy: str = "check the network and the token") -> Iterator[None]:
    """Say in one line what the hub, or the way there, refuses.

    Raises:
        InputError: with what to do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of the hub's client, whatever it speaks with
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            remedy = "the token is not taken: run `hf auth login`, or set HF_TOKEN"
        elif status == 403:
            remedy = "the token may not do this: take one that may write there"
        elif status == 412:
            remedy = "somebody changed the repository meanwhile: look at it, and start the same command again"
        raise InputError(f"{repo}: {constants.ENDPOINT} refuses ({one_line(error)}); {remedy}") from error
