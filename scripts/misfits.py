"""How well the best passage fits a question that a library can answer, and one that it cannot: cosines of the embedder.

    python scripts/misfits.py FILE FILE [FILE …]

FILE: questions with contexts, as for `sac eval`. Of each file up to 120 contexts, cut to 1,100 characters, stand for a
library, and up to 200 of their questions are asked of it and of the libraries of all other files. Prints the lowest
cosines of the best passage in both cases, and what share of the questions is below a limit.
"""

import random
import sys

import numpy as np

from sac_rag.evaluate.tasks import load_task
from sac_rag.models.embedder import Embedder

CONTEXTS, QUESTIONS, CHARACTERS = 120, 200, 1100
LIMITS = (0.15, 0.2, 0.25, 0.3, 0.35)
PERCENTILES = (1, 5, 25, 50)


def vectors_of(file: str, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
    """(questions, contexts) of a file, drawn by seed 0."""
    task = load_task(file)
    contexts = random.Random(0).sample(task.contexts, min(CONTEXTS, len(task.contexts)))
    asked = [q.question for _, questions in contexts for q in questions]
    asked = random.Random(0).sample(asked, min(QUESTIONS, len(asked)))
    texts = [text[:CHARACTERS] for text, _ in contexts]
    return embedder.encode(asked, kind="query"), embedder.encode(texts)


def main() -> None:
    if len(files := sys.argv[1:]) < 2:
        sys.exit(
            f"{len(files)} files are named; give two or more, so that questions can be asked of another's contexts"
        )
    embedder = Embedder()
    sets = {file: vectors_of(file, embedder) for file in files}
    own = {file: (asked @ texts.T).max(1) for file, (asked, texts) in sets.items()}
    other = [(sets[a][0] @ sets[b][1].T).max(1) for a in files for b in files if a != b]
    for file, best in own.items():
        below = ", ".join(f"{100 * (best < limit).mean():.1f} % below {limit:g}" for limit in LIMITS)
        print(f"{file}: {len(best)} questions, {below}")
    for name, found in (("own library", list(own.values())), ("another's library", other)):
        best = np.concatenate(found)
        low = ", ".join(f"{p} %: {v:.2f}" for p, v in zip(PERCENTILES, np.percentile(best, PERCENTILES), strict=True))
        below = ", ".join(f"{100 * (best < limit).mean():.1f} % below {limit:g}" for limit in LIMITS)
        print(f"{name}: {len(best)} questions; percentiles {low}; {below}")


if __name__ == "__main__":
    main()
