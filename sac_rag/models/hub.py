"""Models of the Hugging Face hub: safetensors, configs and tokenizers only, never a pickle, never code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sac_rag.errors import ModelError, SacError
from sac_rag.models.progress import reporting
from sac_rag.models.wheels import is_offline

ALLOWED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
IGNORED = ["original/*", "onnx/*", "openvino/*", "*consolidated*"]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_hub_id(name: str) -> bool:
    """True for `owner/model` and `owner/model@revision`."""
    return _ID.fullmatch(name) is not None


def fetch(name: str, check_config: Callable[[Path, str], None] | None, *, local_only: bool = False) -> Path:
    """Download a hub model (or take it from the hub's cache) and return its folder.

    local_only: take it from the cache or not at all: it was named by a file, not by the user.
    `check_config(config.json, name)` runs before any weight is fetched. Raises ModelError with one clear line.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    where: dict[str, Any] = {"revision": revision or None, "local_files_only": local_only or is_offline()}
    try:
        if check_config is not None:
            check_config(Path(str(hf_hub_download(repo, "config.json", **where))), name)
        with reporting() as report:
            report(f"fetching {repo}", 0, None)
        return Path(str(snapshot_download(repo, allow_patterns=ALLOWED, ignore_patterns=IGNORED, **where)))
    except GatedRepoError as error:
        raise ModelError(
            f"{repo} is gated: accept its licence on the hub, then log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no public model {repo!r}: check the id, or log in with `hf auth login`"
        ) from error
    except SacError:
        raise
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise _unreachable(name, local_only) from error
    except EntryNotFoundError as error:
        raise ModelError(f"{repo} has no config.json on the hub: it is no transformers model") from error
    except Exception as error:  # the hub's client has changed its HTTP library, and with it what it raises
        if re.search("Connect|Timeout|Proxy|Network|Transport", type(error).__name__):
            raise _unreachable(name, local_only) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"status {status}" if status else type(error).__name__
        raise ModelError(f"{repo} cannot be fetched from the hub ({reason}): try again later") from error


def _unreachable(name: str, local_only: bool) -> ModelError:
    if local_only:
        return ModelError(
            f"{name} is not in the local cache, and is not fetched because a library or an adapter says so: if you "
            f"trust that model, run `sac models pull {name}`"
        )
    repo = name.partition("@")[0]
    why = "SAC_OFFLINE is set" if is_offline() else "the hub is out of reach"
    return ModelError(
        f"{repo} is not in the local cache and {why}: connect once, or name a folder that holds the model"
    )
