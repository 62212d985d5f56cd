"""Many clients for many minutes against `sac serve`: wrong answers, rows that nobody waits for, memory.

    python scripts/soak_server.py my.lib questions.txt --minutes 10

Every client streams one question after another and compares the text with that of `SacRag.ask`; one in ten leaves in
the middle of an answer. Prints a line of JSON: answers, wrong ones with the first of them, rows left at the end, and
the server's resident bytes over time. Exit code 1 where an answer was wrong, a row was left, or memory grew by a tenth
between the first third and the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

VANISH = 0.1


async def client(
    http: httpx.AsyncClient, number: int, until: float, want: dict[str, str], seen: dict[str, Any]
) -> None:
    """One client after another question, until the time is over."""
    draw = random.Random(number)
    while time.monotonic() < until:
        question = draw.choice(list(want))
        leaves = draw.random() < VANISH
        body = {"model": "soaked", "messages": [{"role": "user", "content": question}], "stream": True}
        text = ""
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                raise SystemExit(f"{reply.status_code}: {(await reply.aread()).decode()}")
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                content = json.loads(line[6:])
                if "error" in content:
                    raise SystemExit(content["error"]["message"])
                text += "".join(c["delta"].get("content", "") for c in content["choices"])
                if leaves and text:
                    break
        if leaves and text:
            seen["left"] += 1
        else:
            seen["answers"] += 1
            if text != want[question]:
                seen["wrong"].append({"question": question, "got": text, "want": want[question]})


async def memory(pid: int, until: float, every: float, seen: dict[str, Any]) -> None:
    """The server's resident bytes, now and then."""
    while time.monotonic() < until:
        status = Path(f"/proc/{pid}/status").read_text()
        seen["resident_bytes"].append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024)  # type: ignore[index]
        await asyncio.sleep(every)


async def rows(http: httpx.AsyncClient) -> int:
    """Rows and waiting answers, once the server has had a moment."""
    for _ in range(50):
        text = (await http.get("/metrics")).text
        left = sum(float(n) for n in re.findall(r"^sac_rows\{.*\} (\S+)$", text, re.M))
        if not left:
            return 0
        await asyncio.sleep(0.2)
    return int(left)


async def soak(url: str, pid: int, want: dict[str, str], clients: int, minutes: float) -> dict[str, Any]:
    seen: dict[str, Any] = {"answers": 0, "left": 0, "wrong": [], "resident_bytes": []}
    until = time.monotonic() + 60 * minutes
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as http:
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(client(http, number, until, want, seen))
            tasks.create_task(memory(pid, until, max(1.0, minutes), seen))
        seen["rows_left"] = await rows(http)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("questions", help="a file, one question a line")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    from sac_rag import SacRag

    asked = [line.strip() for line in Path(given.questions).read_text().splitlines() if line.strip()]
    with SacRag.open(given.library) as rag:
        want = {question: rag.ask(question).text for question in asked}
    command = [sys.executable, "-m", "sac_cli", "serve", f"soaked={given.library}", "--port", "0", "--read-only"]
    # Closed with its standard output; requests are not counted, as all clients have one address.
    with subprocess.Popen([*command, "--requests-per-minute", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            seen = asyncio.run(soak(url, server.pid, want, given.clients, given.minutes))
        finally:
            server.terminate()
    size = seen["resident_bytes"]
    third = max(1, len(size) // 3)
    grew = max(size[-third:]) > 1.1 * max(size[:third])
    print(json.dumps({**seen, "wrong": len(seen["wrong"]), "first_wrong": seen["wrong"][:1], "grew": grew}))
    return int(bool(seen["wrong"] or seen["rows_left"] or grew))


if __name__ == "__main__":
    sys.exit(main())
