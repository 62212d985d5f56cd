"""Sixteen callers at once, and one by one. python parallel.py my.lib "How long is the Erie Canal?" """

import asyncio
import sys
import time

from langchain_sac import ChatSac, SacRetriever, format_docs_sac, sac_prompt

library, question = sys.argv[1:]

chat = ChatSac(library=library, max_tokens=48)
found = format_docs_sac(SacRetriever(library=library, k=1).invoke(question), chat)
prompts = [sac_prompt(chat).invoke({"context": found, "input": f"{n}. {question}"}) for n in range(1, 17)]


async def one_by_one() -> list[str]:
    return [(await chat.ainvoke(p)).text for p in prompts]


async def at_once() -> list[str]:
    return [m.text for m in await asyncio.gather(*(chat.ainvoke(p) for p in prompts))]


asyncio.run(at_once())  # loads the model; both find the prompts read
began = time.perf_counter()
alone = asyncio.run(one_by_one())
between = time.perf_counter()
together = asyncio.run(at_once())
ended = time.perf_counter()

equal = sum(a == b for a, b in zip(alone, together, strict=True))
times = (between - began) / (ended - between)
print(f"{equal} of {len(prompts)} answers equal, at once {times:.1f} times as fast")
