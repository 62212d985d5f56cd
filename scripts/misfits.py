"""How well the best passage fits a question that a library can answer, and one that it cannot: cosines of the embedder.

    python scripts/misfits.py FILE FILE [FILE …]

FILE: questions with contexts, as for `sac eval`. Of each file up to 120 contexts, cut to 1,100 characters, stand for a
library, and up to 200 of their questions are asked of it and of the libraries of all other files. Prints the lowest
cosines of the best passage in both cases, and of the context that a question belongs to, and what share of the
questions is below a limit.
"""

import random
import sys

import numpy as np

from sac_rag.evaluate.tasks import load_task
from sac_rag.models.embedder import Embedder

CONTEXTS, QUESTIONS, CHARACTERS = 120, 200, 1100
LIMITS = (0.15, 0.2, 0.25, 0.3, 0.35)
PERCENTILES = (1, 5, 25, 50)


def vectors_of(file: str, embedder: Embedder) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(questions, contexts, the context of each question) of a file, drawn by seed 0."""
    task = load_task(file)
    contexts = random.Random(0).sample(task.contexts, min(CONTEXTS, len(task.contexts)))
    asked = [(q.question, at) for at, (_, questions) in enumerate(contexts) for q in questions]
    asked = random.Random(0).sample(asked, min(QUESTIONS, len(asked)))
    texts = [text[:CHARACTERS] for text, _ in contexts]
    return embedder.encode([q for q, _ in asked], kind="query"), embedder.encode(texts), [at for _, at in asked]


def described(cosines: np.ndarray) -> str:
    low = ", ".join(f"{p} %: {v:.2f}" for p, v in zip(PERCENTILES, np.percentile(cosines, PERCENTILES), strict=True))
    below = ", ".join(f"{100 * (cosines < limit).mean():.1f} % below {limit:g}" for limit in LIMITS)
    return f"{len(cosines)} questions; percentiles {low}; {below}"


def main() -> None:
    if len(files := sys.argv[1:]) < 2:
        sys.exit(
            f"{len(files)} files are named; give two or more, so that questions can be asked of another's contexts"
        )
    embedder = Embedder()
    sets = {file: vectors_of(file, embedder) for file in files}
    own = {file: (asked @ texts.T).max(1) for file, (asked, texts, _) in sets.items()}
    theirs = {file: (asked * texts[at]).sum(1) for file, (asked, texts, at) in sets.items()}
    other = [(sets[a][0] @ sets[b][1].T).max(1) for a in files for b in files if a != b]
    for file in files:
        print(f"{file}, best: {described(own[file])}\n{file}, own context: {described(theirs[file])}")
    print(f"own library, best: {described(np.concatenate(list(own.values())))}")
    print(f"another's library, best: {described(np.concatenate(other))}")


if __name__ == "__main__":
    main()
