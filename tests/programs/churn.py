"""Hard case: objects of Python made and dropped. Prints rounds_per_s; PYTHONMALLOC=malloc.

    churn.py SECONDS

Stages: ready, (byte: run) done with the rate, (byte) end.
"""
import os
import sys
import time


def stage(text):
    print(f'{{"stage":{text},"pid":{os.getpid()}}}', flush=True)
    if not os.read(0, 1):
        sys.exit("the bench closed stdin")


def one_round():
    table = {}
    for number in range(50):
        table[f"key {number}"] = [number, str(number * 1000), (number, float(number))]
    return sum(len(entry[1]) for entry in table.values())


def main():
    seconds = float(sys.argv[1])
    stage('"ready"')
    rounds, start = 0, time.monotonic()
    while True:
        one_round()
        rounds += 1
        passed = time.monotonic() - start
        if passed >= seconds:
            break
    stage(f'"done","rounds_per_s":{rounds / passed:.1f}')


main()
