"""CPython: objects that come and go, and a wrapper of C that forgets a string.

    cases.py loop|strdup

Stages: ready, (byte: run) and then until it is killed.
"""
import ctypes
import json
import os
import sys
import time

TURNS = 50


def churn(table, turn):
    """What a service does: a bounded table, text in and out."""
    table[turn % 400] = "x" * (turn % 900)
    text = json.dumps({"turn": turn, "list": list(range(turn % 200)), "text": "y" * 1000})
    return len(json.loads(text)["list"])


def main():
    name = sys.argv[1]
    strdup = ctypes.CDLL(None).strdup
    strdup.restype = ctypes.c_void_p
    print(f'{{"stage":"ready","pid":{os.getpid()}}}', flush=True)
    if not os.read(0, 1):
        sys.exit("the test closed stdin")
    table, start = {}, time.monotonic()
    for turn in range(1 << 30):
        churn(table, turn)
        if name == "strdup" and turn % 5 == 0:
            strdup(b"a copy that nobody frees")
        time.sleep(max(0.0, start + (turn + 1) / TURNS - time.monotonic()))


main()
