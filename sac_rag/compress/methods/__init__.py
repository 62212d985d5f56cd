"""Compression methods by name. A new method is one file here and one line below."""

from sac_rag.registry import Registry

METHODS = Registry(
    "method",
    {
        "attention-matching": "sac_rag.compress.methods.attention_matching:AttentionMatching",
        "sac": "sac_rag.compress.methods.sac:Sac",
        "full-ft": "sac_rag.compress.methods.full_ft:FullFt",
        "full-kv": "sac_rag.compress.methods.full_kv:FullKv",
        "kvzip": "sac_rag.compress.methods.kvzip:KvZip",
    },
)
