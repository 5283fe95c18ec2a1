"""A saved projector to the Hub, as it lies in its folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pnp_irib.errors import ConfigError
from pnp_irib.hub.card import Measured
from pnp_irib.hub.download import explained
from pnp_irib.hub.names import repository
from pnp_irib.projectors.base import CARD_NAME, CONFIG_NAME, SETTINGS_NAME, WEIGHTS_NAME, read_folder
from pnp_irib.projectors.card import projector_card

__all__ = ["publish"]

FILES = (CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, SETTINGS_NAME)


def publish(
    folder: Path,
    repo_id: str,
    *,
    measured: Sequence[Measured] = (),
    licence: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Push a projector's folder, after a check of it; the files of a wrapped restorer go along.

    Args:
        folder: that `Projector.save_pretrained` or `WrappedRestorer.save_pretrained` wrote.
        repo_id: ``owner/name``; made if absent.
        measured: what `pnp_irib.bench` found with it; goes into configuration and model card.
        licence: of the weights, in place of the one that is stated.
        private: whether a new repository is.
        token: to log in with; None: that of ``hf auth login``.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: it is no name of a repository, or what was measured is another projector.
        WeightsError: the folder is damaged, or the Hub refuses.
    """
    name = repository(repo_id)
    found = read_folder(folder)
    base = getattr(found.architecture, "base", None)
    if base is not None and not found.architecture.base_models:
        raise ConfigError(
            f"{folder} names its base model by a path of this machine, {base}, where nobody else has it. Write its place on "
            f"the Hub, or stable-diffusion-2-1-base, as architecture.base into {folder / CONFIG_NAME}; its fingerprint stays."
        )
    if other := [entry for entry in measured if entry.weights_sha256 != found.sha256]:
        raise ConfigError(
            f"the report on {other[0].data} ({other[0].preset}) is of a projector with the sha256 {other[0].weights_sha256}; "
            f"the one in {folder} has {found.sha256}. Measure this one: pnp-irib bench --projector local-dir:{folder}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        present = [file for file in FILES if (folder / file).is_file()]
        for file in present:
            shutil.copy(folder / file, copy)
        generated = projector_card(found.architecture, found.provenance, found.parameters)
        if (
            (measured or licence is not None)
            and (folder / CARD_NAME).is_file()
            and (copy / CARD_NAME).read_text() != generated
        ):
            raise ConfigError(
                f"{folder / CARD_NAME} was written by hand, and a report or a licence would go into a generated one. Move "
                f"yours away, or put them into it and push without."
            )
        if measured or licence is not None:
            update = {"measured": tuple(measured) or found.provenance.measured, "licence": licence or found.provenance.licence}
            provenance = found.provenance.model_copy(update=update)
            config = json.loads((copy / CONFIG_NAME).read_text()) | {"provenance": provenance.model_dump(mode="json")}
            (copy / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n")
            (copy / CARD_NAME).write_text(projector_card(found.architecture, provenance, found.parameters))
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        try:
            repo = api.create_repo(name.target, private=private, exist_ok=True).repo_id
            stale = [file for file in FILES if file not in present] or None
            message = "Add a projector of pnp_irib"
            done = api.upload_folder(repo_id=repo, folder_path=copy, commit_message=message, delete_patterns=stale)
        except Exception as error:  # the client's errors, those of its HTTP library, of the system
            raise explained(name, error) from error
    return str(done.commit_url)
