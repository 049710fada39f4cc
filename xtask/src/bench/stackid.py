"""The peer of `cargo xtask bench stacks`: one BPF program at malloc's entry in one process.

    stackid.py PID LIBRARY stack|bare    counts by bpf_get_stackid, or just counts, until SIGINT
    stackid.py statistics                holds the kernel's statistics of BPF programs on

In raw instructions, so that nothing but the helper is between the two. Prints a line when ready.
"""
import re
import signal
import struct
import subprocess
import sys

from rawbpf import ENABLE_STATS, MAP_CREATE, RETURN, UPROBE_MULTI, attach, bpf, load, number, op

# include/uapi/linux/bpf.h
HASH, STACK_TRACE = 1, 7
LOOKUP, UPDATE, PID_TGID, STACKID, USER_STACK = 1, 2, 14, 27, 256
FRAMES = 127


def new_map(kind, key_bytes, value_bytes, entries):
    return bpf(MAP_CREATE, struct.pack("<IIIII", kind, key_bytes, value_bytes, entries, 0))


def call(helper):
    return op(0x85, value=helper)


def move(to, source):
    return op(0xBF, to, source)


def map_at(to, fd):
    return op(0x18, to, 1, 0, fd) + op(0)


def stack_address(to, offset):
    return move(to, 10) + op(0x07, to, value=offset)


def program(pid, with_stack):
    """if (tgid == pid) counts[with_stack ? bpf_get_stackid(...) : 0]++"""
    counts = new_map(HASH, 4, 8, 1024)
    tail = move(1, 6)
    if with_stack:
        stacks = new_map(STACK_TRACE, 4, 8 * FRAMES, 1024)
        tail += map_at(2, stacks) + number(3, USER_STACK) + call(STACKID)
    else:
        tail += number(0, 0)
    tail += op(0x63, 10, 0, -4)
    tail += map_at(1, counts) + stack_address(2, -4) + call(LOOKUP)
    add = number(1, 1) + op(0xDB, 0, 1)
    new = op(0x7A, 10, 0, -16, 1) + map_at(1, counts) + stack_address(2, -4)
    new += stack_address(3, -16) + number(4, 0) + call(UPDATE)
    tail += op(0x55, 0, offset=len(new) // 8 + 1) + new + op(0x05, offset=len(add) // 8) + add
    body = move(6, 1) + call(PID_TGID) + op(0x77, 0, value=32)
    return body + op(0x55, 0, offset=len(tail) // 8, value=pid) + tail + number(0, 0) + RETURN


def malloc_offset(library):
    def readelf(*flags):
        return subprocess.run(["readelf", "-W", *flags, library], capture_output=True, text=True, check=True).stdout

    address = int(re.search(r"(\w+)\s+\d+ FUNC\s+GLOBAL DEFAULT\s+\d+ malloc@@", readelf("--dyn-syms")).group(1), 16)
    for line in readelf("-l").splitlines():
        words = line.split()
        if words[:1] == ["LOAD"]:
            offset, start, size = (int(words[at], 16) for at in (1, 2, 4))
            if start <= address < start + size:
                return address - start + offset
    sys.exit(f"{library}: no segment has malloc")


def main():
    if sys.argv[1] == "statistics":
        held = [bpf(ENABLE_STATS, struct.pack("<II", 0, 0))]
    else:
        pid, library = int(sys.argv[1]), sys.argv[2]
        loaded = load(program(pid, sys.argv[3] == "stack"), b"stackid", UPROBE_MULTI)
        link = attach(loaded, UPROBE_MULTI, library, [malloc_offset(library)], pid)
        held = [loaded, link]
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    print("ready", held, flush=True)
    while True:
        signal.pause()


main()
