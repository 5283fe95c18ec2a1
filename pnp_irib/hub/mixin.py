"""What can be saved to and loaded from folders and the Hub."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, ModelHubMixin

from pnp_irib.errors import ConfigError, PnPIribError, WeightsError
from pnp_irib.hub.download import Access, explained, fetch
from pnp_irib.hub.names import Name, parse_name, repository
from pnp_irib.hub.origin import Origin

__all__ = ["HubMixin", "written_by"]


class HubMixin(ModelHubMixin):
    """The methods of huggingface_hub's mixin, with rules of our own: safetensors and JSON only, checked strictly.

    Classes say how they are written into a folder (`_write`) and read from one (`_files`, `_from_folder`).
    """

    _files: tuple[str, ...] = ()
    _others: tuple[str, ...] = ()  # of other classes in the same folder or repository, which would be stale

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        card: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: None = None,
        model_card_kwargs: None = None,
        **push_options: Any,
    ) -> Path:
        """Write a folder; each file is put in place in one step, the configuration last.

        Args:
            save_directory: made if absent.
            card: text of ``README.md``; None: one is generated.
            push_to_hub: push it as well.
            repo_id: where to.
            config: of huggingface_hub's mixin; what is saved says itself what it is.
            model_card_kwargs: likewise.
            push_options: of `push_to_hub`.

        Returns:
            The folder.

        Raises:
            WeightsError: weights that could not be loaded again.
            ConfigError: ``save_directory`` is a file, or options that have no effect here.
        """
        if config is not None or model_card_kwargs is not None or (push_options and not push_to_hub):
            raise ConfigError("config, model_card_kwargs, and options of a push without push_to_hub=True have no effect here.")
        folder = Path(save_directory).expanduser()
        if push_to_hub and repo_id is None:
            raise ConfigError("push_to_hub=True needs repo_id='owner/name'.")
        for name in self._others:
            (folder / name).unlink(missing_ok=True)
        self._write(folder, card)
        if push_to_hub:
            self.push_to_hub(str(repo_id), **push_options)
        return folder

    def _write(self, folder: Path, card: str | None) -> None:
        raise NotImplementedError

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        place: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Load a folder, or a repository of the Hub.

        Args:
            place: a folder, ``local-dir:path``, ``hf-hub:owner/repo[@revision]`` or ``owner/repo``.
            revision: branch, tag or commit on the Hub.
            token: to log in with; None: that of ``hf auth login``.
            cache_dir: of downloads; None: the Hub's own.
            force_download: fetch anew what the cache has; a branch is looked up again.
            local_files_only: use the cache only.
            options: see the class.

        Raises:
            ConfigError: it is no place.
            WeightsError: it cannot be fetched, is damaged, or of another kind or format.
        """
        access = Access(token, cache_dir, force_download, local_files_only)
        folder, origin = cls._locate(place, revision, access)
        try:
            inspect.signature(cls._from_folder).bind(folder, origin, **options)
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}.from_pretrained: {error}.") from None
        return cls._from_folder(folder, origin, **options)

    @classmethod
    def _locate(cls, place: str | Path, revision: str | None, access: Access) -> tuple[Path, Origin | None]:
        """The folder, and where it came from if that was the Hub."""
        path = Path(place).expanduser()
        if isinstance(place, Path) or path.is_dir() or str(place).startswith((".", "/", "~")):
            name = Name("local-dir", str(path))
        else:
            name = parse_name(str(place))
        if name.kind == "hf-hub":
            if revision is not None and name.revision not in (None, revision):
                raise ConfigError(f"{name} names one revision, revision={revision!r} another.")
            fetched = fetch(
                Name("hf-hub", name.target, revision or name.revision),
                cls._files,
                licence="Apache-2.0 for the code that runs it",
                access=access,
            )
            return fetched.folder, fetched.origin()
        if name.kind != "local-dir":
            raise WeightsError(f"{place} is no folder and no repository; expected a path or owner/repo.")
        if revision is not None:
            raise ConfigError(f"revision={revision!r} is for repositories of the Hub; {name.target} is a folder.")
        return Path(name.target).expanduser(), None

    @classmethod
    def _from_folder(cls, folder: Path, origin: Origin | None, **options: Any) -> Self:
        raise NotImplementedError

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = "Add a model of pnp_irib",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Save to a repository of the Hub, which is made if absent; see `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: it is no name of a repository.
            WeightsError: the Hub refuses, or cannot be reached.
        """
        name = repository(repo_id)
        try:
            if branch is not None:
                api = HfApi(token=token)
                api.create_repo(name.target, private=private, exist_ok=True)
                api.create_branch(name.target, branch=branch, exist_ok=True)
            done = super().push_to_hub(
                name.target,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
                delete_patterns=list(self._others) or None,
            )
        except PnPIribError:
            raise
        except Exception as error:  # see `fetch`
            raise explained(name, error) from error
        return str(getattr(done, "commit_url", done))


def written_by(version: object) -> str:
    """What to do about something unknown in a file of another version of this library; a full stop where it is not newer."""
    from packaging.version import InvalidVersion, Version

    from pnp_irib import __version__

    try:
        newer = Version(str(version)) > Version(__version__)
    except InvalidVersion:
        newer = False
    return (
        f". It was written by version {str(version)[:40]}, this is {__version__}. Run: pip install -U pnp-irib"
        if newer
        else "."
    )
