"""The peer of `cargo xtask bench stacks`: one BPF program at malloc's entry in one process.

    stackid.py PID LIBRARY stack|bare    counts by bpf_get_stackid, or just counts, until SIGINT
    stackid.py statistics                holds the kernel's statistics of BPF programs on

In raw instructions, so that nothing but the helper is between the two. Prints a line when ready.
"""
import ctypes
import re
import signal
import struct
import subprocess
import sys

# include/uapi/linux/bpf.h
MAP_CREATE, PROG_LOAD, LINK_CREATE, ENABLE_STATS = 0, 5, 28, 32
HASH, STACK_TRACE, KPROBE, UPROBE_MULTI = 1, 7, 2, 48
LOOKUP, UPDATE, PID_TGID, STACKID, USER_STACK = 1, 2, 14, 27, 256
SYS_BPF = 321
FRAMES = 127

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        sys.exit(f"bpf({command}): errno {ctypes.get_errno()}")
    return result


def new_map(kind, key_bytes, value_bytes, entries):
    return bpf(MAP_CREATE, struct.pack("<IIIII", kind, key_bytes, value_bytes, entries, 0))


def op(code, to=0, source=0, offset=0, value=0):
    return struct.pack("<BBhi", code, to | source << 4, offset, value)


def call(helper):
    return op(0x85, value=helper)


def move(to, source):
    return op(0xBF, to, source)


def number(to, value):
    return op(0xB7, to, value=value)


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
    return body + op(0x55, 0, offset=len(tail) // 8, value=pid) + tail + number(0, 0) + op(0x95)


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
        code = program(pid, sys.argv[3] == "stack")
        code_buffer, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
        attributes = struct.pack("<IIQQIIQII16sII", KPROBE, len(code) // 8, ctypes.addressof(code_buffer),
                                 ctypes.addressof(licence), 0, 0, 0, 0, 0, b"stackid", 0, UPROBE_MULTI)
        loaded = bpf(PROG_LOAD, attributes)
        path = ctypes.create_string_buffer(library.encode())
        offset = ctypes.c_uint64(malloc_offset(library))
        link = bpf(LINK_CREATE, struct.pack("<IIIIQQQQIIII", loaded, 0, UPROBE_MULTI, 0, ctypes.addressof(path),
                                            ctypes.addressof(offset), 0, 0, 1, 0, pid, 0))
        held = [loaded, link]
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    print("ready", held, flush=True)
    while True:
        signal.pause()


main()
