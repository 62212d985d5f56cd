"""Whether a long message is searched for by what it asks: five questions at either end of, and within, four long texts.

    python scripts/long_questions.py [TIMES]

TIMES: how often a sentence stands around the question (default 20: three windows of the embedder; 60: eight).
Prints how many of twenty messages find their sentence among five, with their windows averaged alike and as queries are.
"""

import sys

from sac_rag.models.embedder import Embedder

ASKED = {
    "When does the north gate close?": "The north gate closes at nine in the evening on weekdays.",
    "How often does the ferry to the island leave?": "The ferry to Lund island departs every two hours from pier four.",
    "What do parking permits cost?": "Parking permits cost forty euros a year and are issued by the front desk.",
    "What must I wear in the chemistry laboratory?": (
        "The chemistry laboratory requires goggles and a signed safety form."
    ),
    "Until when is breakfast served in the lobby?": "The caf\u00e9 in the lobby serves breakfast until half past ten.",
}
AROUND = (
    "Dear colleagues, I hope this message finds you well and that the garden party last week with its lanterns and "
    "music was as pleasant for you as for us. ",
    "The server log says that job 4711 ended with code 137 after twelve minutes, was started again by the scheduler "
    "and ended the same way on another host. ",
    "Once upon a time a miller had three sons, and when he died the eldest took the mill, the second the donkey, and "
    "the youngest was left with nothing but the cat. ",
    "Our quarterly revenue rose by four percent, mainly in the northern region, while costs of energy and transport "
    "fell and the outlook for the next year stays stable. ",
)


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    embedder = Embedder()
    passages = embedder.encode(list(ASKED.values()))
    for place, front in {"at the end": times, "at the beginning": 0, "in the middle": times // 2}.items():
        messages = [f"{text * front}My question: {q} {text * (times - front)}" for text in AROUND for q in ASKED]
        found = {}
        for way, kind in {"alike": "passage", "as a query": "query"}.items():
            nearest = (embedder.encode(messages, kind=kind) @ passages.T).argmax(1)
            found[way] = sum(int(n) == i % len(ASKED) for i, n in enumerate(nearest))
        print(f"{place}, of {len(messages)}: {found}", flush=True)


if __name__ == "__main__":
    main()
