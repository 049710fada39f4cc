# Many objects, which two threads move about without pause: each swaps the attributes of two, and
# replaces others. Blocks of 7,777 bytes are leaked, and nothing else is.
#
# argv: objects, leaked blocks. Stages: ready, (byte: allocate) running, (byte) end.
import ctypes
import gc
import json
import os
import random
import sys
import threading

OBJECTS, LEAKED = int(sys.argv[1]), int(sys.argv[2])


def stage(name, **fields):
    print(json.dumps({"stage": name, "pid": os.getpid(), **fields}), flush=True)
    os.read(0, 1)


class Item:
    def __init__(self, number):
        self.name = "item %d" % number
        self.pair = (number + 1_000_000, str(number))
        self.links = [number + 2_000_000]


libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]

stage("ready")
items = [Item(number) for number in range(OBJECTS)]
for _ in range(LEAKED):
    libc.malloc(7777)
gc.freeze()


def swap(seed):
    chance = random.Random(seed)
    while True:
        one, two = chance.choice(items), chance.choice(items)
        one.pair, two.pair = two.pair, one.pair
        one.links, two.links = two.links, one.links
        if chance.random() < 0.1:
            items[chance.randrange(OBJECTS)] = Item(chance.randrange(OBJECTS))


for seed in range(2):
    threading.Thread(target=swap, args=(seed,), daemon=True).start()
stage("running", leaked=LEAKED)
os._exit(0)
