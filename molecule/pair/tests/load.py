"""Ask for URLs until a file appears, and count: python3 load.py CA STOP URL...

Four threads, each over connections that stay open for a while, as those of pip and uv do. The first answer of a URL is
the right one for all later requests. Prints the result as JSON.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import ssl
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

THREADS = 4
REQUESTS_OF_A_CONNECTION = 20
OK = 200


def main(ca: str, stop: str, *urls: str) -> None:
    """Ask, and print the result."""
    context = ssl.create_default_context(cafile=ca)
    first: dict[str, bytes] = {}
    failed: list[str] = []
    counts = [0] * THREADS
    slowest = [0.0] * THREADS

    def ask(number: int) -> None:
        choice = random.Random(number)
        while not Path(stop).exists():
            host = choice.choice(sorted({urlsplit(url).netloc for url in urls}))
            connection = http.client.HTTPSConnection(host, context=context, timeout=30)
            for _ in range(REQUESTS_OF_A_CONNECTION):
                url = choice.choice([url for url in urls if urlsplit(url).netloc == host])
                began = time.monotonic()
                try:
                    connection.request(
                        "GET", urlsplit(url).path, headers={"Accept": "text/html", "User-Agent": "pip/26"}
                    )
                    answer = connection.getresponse()
                    body = answer.read()
                except (OSError, http.client.HTTPException) as error:
                    failed.append(f"{url}: {error!r}")
                    break
                counts[number] += 1
                slowest[number] = max(slowest[number], time.monotonic() - began)
                if answer.status != OK:
                    failed.append(f"{url}: {answer.status}")
                elif first.setdefault(url, body) != body:
                    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first[url], body, strict=False))
                    at = sum(1 for _ in same)
                    failed.append(f"{url}: other bytes than before: {body[max(0, at - 100) : at + 200]!r}")
            connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"requests": sum(counts), "slowest": round(max(slowest), 2), "failed": failed[:20]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
