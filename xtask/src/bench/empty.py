"""The floor of `cargo xtask bench --limits`: leaktrace's probes with programs that return at once.

    empty.py points TRACER               prints where the links of this leaktrace are attached
    empty.py attach watch|skip POINTS    attaches empty programs there, until SIGINT

With `skip` the session program has the function's return skipped, as for what is not sampled.
Prints a line when ready.
"""
import ctypes
import glob
import json
import os
import re
import signal
import struct
import sys

from rawbpf import (OBJ_GET_INFO_BY_FD, PROG_GET_FD_BY_ID, RETURN, UPROBE_MULTI, UPROBE_SESSION, attach, bpf, load,
                    number)

# Offset and length of the name in struct bpf_prog_info.
NAME_AT, NAME_LENGTH = 64, 16


def name_of(program_id):
    program = bpf(PROG_GET_FD_BY_ID, struct.pack("<III", program_id, 0, 0))
    info = ctypes.create_string_buffer(NAME_AT + NAME_LENGTH)
    bpf(OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, len(info), ctypes.addressof(info)))
    os.close(program)
    return info.raw[NAME_AT:].split(b"\0")[0].decode()


def points(tracer):
    """[[program, path, pid, [offset]]] of its user links, as the kernel tells them (from 6.17)."""
    found = []
    for path in glob.glob(f"/proc/{tracer}/fdinfo/*"):
        try:
            text = open(path).read()
        except FileNotFoundError:
            continue
        if "link_type:\tuprobe_multi" not in text and "link_type:\turetprobe_multi" not in text:
            continue

        def field(name):
            match = re.search(rf"^{name}:\t(.*)$", text, re.M)
            if not match:
                sys.exit("this kernel does not tell where links are attached (it does from 6.17)")
            return match.group(1)

        offsets = [int(offset, 16) for offset in re.findall(r"^\d+\s+(0x[0-9a-f]+)\s+0x", text, re.M)]
        found.append([name_of(int(field("prog_id"))), field("path"), int(field("pid")), offsets])
    if not {"lt_session", "lt_free"} <= {name for name, *_ in found}:
        sys.exit(f"leaktrace has no session link here: {found}")
    return found


def main():
    if sys.argv[1] == "points":
        print(json.dumps(points(sys.argv[2])))
        return
    session = load(number(0, int(sys.argv[2] == "skip")) + RETURN, b"empty_session", UPROBE_SESSION)
    free = load(number(0, 0) + RETURN, b"empty_free", UPROBE_MULTI)
    kinds = {"lt_session": (session, UPROBE_SESSION), "lt_free": (free, UPROBE_MULTI)}
    # Entries and return instructions of functions that throw have multi links as well.
    other = (free, UPROBE_MULTI)
    held = [attach(*kinds.get(name, other), path, offsets, pid) for name, path, pid, offsets in json.loads(sys.argv[3])]
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    print("ready", held, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
