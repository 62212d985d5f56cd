"""How follow-up questions do, searched for by their own words and by those of the question before too.

    python scripts/follow_ups.py [LIBRARY]

LIBRARY: a library of the sample documents; without one, one is made in a temporary folder.
"""

import json
import sys
import tempfile
from pathlib import Path

from sac_rag import AskConfig, Conversation, SacRag, samples
from sac_rag.evaluate.metrics import contains

PAIRS = json.loads((Path(samples.__file__).parent / "follow_ups.json").read_text("utf-8"))


class OwnWords(Conversation):
    """Searches for the question alone."""

    def searched(self, question: str) -> str:
        return question


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = sys.argv[1] if len(sys.argv) > 1 else f"{folder}/samples.lib"
        rag = SacRag.open(where) if len(sys.argv) > 1 else SacRag.index(samples.documents(), where)
        with rag:
            for k in (1, 5):
                for talk in (OwnWords, Conversation):
                    found = right = 0
                    for pair in PAIRS:
                        conversation, ask = talk(), AskConfig(k=k, max_new_tokens=24)
                        rag.ask(pair["question"], ask, conversation=conversation)
                        answer = rag.ask(pair["follow_up"], ask, conversation=conversation)
                        found += any(hit.passage.document.endswith(pair["document"]) for hit in answer.sources)
                        right += contains(answer.text, pair["answers"])
                    print(f"k {k}, {talk.__name__}: document found {found}, answered {right} of {len(PAIRS)}")


if __name__ == "__main__":
    main()
