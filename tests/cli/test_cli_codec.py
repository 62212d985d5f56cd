"""`sac codec` and `sac recode`: fitted, used by new libraries, and old ones brought over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli_toys import Sac, Toys

CODECS = {"bf16", "int4", "int8", "transform"}


@pytest.fixture
def adapter(toys: Toys, tmp_path: Path) -> Path:
    """A copy of the toy adapter, to write into."""
    return Path(shutil.copytree(toys.adapter, tmp_path / "adapter"))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [{"text": f"Passage {n} says that {n * 37} of the {n} mills stand still in the wind."} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_basis_is_fitted_stored_and_used(sac: Sac, toys: Toys, documents: Path, adapter: Path, texts: Path) -> None:
    settings = {**toys.environment, "SAC_ADAPTER": str(adapter)}
    refused = sac("index", "docs", "--codec", "transform", **settings)
    assert refused.code == 2 and "sac codec FILES --write" in refused.err
    fitted = sac("codec", str(texts), "--ratio", "2,5", "--passages", "60", "--json", **settings)
    assert fitted.code == 0, fitted.err
    assert fitted.json["written"] is None and not (adapter / "codec.safetensors").exists()
    rows = {(row["codec"], row["ratio"]): row for row in fitted.json["codecs"]}
    assert set(rows) == {(codec, ratio) for codec in CODECS for ratio in (2.0, 5.0)}
    errors = [rows[codec, 2.0]["key_error"] for codec in ("bf16", "int8", "int4", "transform")]
    assert errors == sorted(errors), "each coarser than the one before"
    assert all(row["bytes_per_source_token"] > 0 and row["passages"] == 6 for row in rows.values())
    finer = sac("codec", str(texts), "--ratio", "5", "--step", "0.1", "--write", "--json", **settings)
    assert finer.json["written"] == "codec.safetensors"
    assert next(r for r in finer.json["codecs"] if r["codec"] == "transform")["key_error"] < 0.1
    made = sac("index", "docs", "--codec", "transform", "--json", **settings)
    assert made.code == 0, made.err
    assert sac("info", "--json").json["codec"] == "transform" and sac("verify").code == 0
    for library, flags, codec in (("usual", (), "transform"), ("plain", ("--codec", "bf16"), "bf16")):
        assert sac("index", "docs", "--library", library, *flags, **settings).code == 0
        assert sac("info", "--library", library, "--json").json["codec"] == codec
        again = sac("index", "docs", "--library", library, "--ratio", "5", "--json", **settings)
        assert again.json["unchanged"] == 2, "its own codec stays, whatever is usual"
    other = sac("index", "docs", "--library", "usual", "--codec", "bf16", **settings)
    assert other.code == 3 and "codec is 'transform' there and 'bf16' here" in other.err
    (adapter / "codec.safetensors").unlink()
    assert sac("ask", "Who travels?", "--max-new-tokens", "4").code == 0, "the library has its own copy"


def test_a_library_changes_its_codec(sac: Sac, toys: Toys, documents: Path) -> None:
    assert sac("index", "docs", **toys.environment).code == 0
    before = sac("info", "--json").json
    result = sac("recode", "int8", "--json")
    assert result.code == 0, result.err
    found = result.json
    assert (found["from"], found["to"], found["passages"]) == ("bf16", "int8", before["passages"])
    assert found["kv_bytes_after"] < found["kv_bytes_before"] and sac("info", "--json").json["codec"] == "int8"
    assert sac("verify").code == 0
    again = sac("index", "docs", "--json")
    assert again.json["unchanged"] == 2, "a library that was recoded is still up to date"
    assert sac("recode", "int8").code == 1 and "already" in sac("recode", "int8").err
    assert sac("recode", "transform").code == 2, "its adapter has no basis"
    assert sac("recode", "zip").code == 2
    assert sac("recode", "int8", "--library", "nowhere").code == 3
