"""Compression methods by name. A new method is one file here and one line below."""

from sac_rag.registry import Registry

METHODS = Registry(
    "method",
    {
        "icae": "sac_rag.compress.methods.icae:Icae",
        "500x": "sac_rag.compress.methods.x500:FiveHundredX",
        "epl": "sac_rag.compress.methods.epl:Epl",
        "llmlingua2": "sac_rag.compress.methods.llmlingua2:LlmLingua2",
        "attention-matching": "sac_rag.compress.methods.attention_matching:AttentionMatching",
        "beacon": "sac_rag.compress.methods.beacon:Beacon",
        "dast": "sac_rag.compress.methods.dast:Dast",
        "sac": "sac_rag.compress.methods.sac:Sac",
        "full-ft": "sac_rag.compress.methods.full_ft:FullFt",
        "full-kv": "sac_rag.compress.methods.full_kv:FullKv",
        "kvzip": "sac_rag.compress.methods.kvzip:KvZip",
    },
)
