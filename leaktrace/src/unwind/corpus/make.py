#!/usr/bin/env python3
"""Writes the corpus of hostile and odd call frame information beside this file.

`*.eh_frame` are sections, loaded at address 0x1000; `tiny.elf` and `allocator.elf` are shared
libraries (gcc -shared -nostdlib -Wl,-z,noseparate-code) that the tests damage in their headers.
"""
import pathlib
import struct
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
BASE = 0x1000

# DW_CFA_*
NOP, SET_LOC, ADVANCE1, ADVANCE4 = 0x00, 0x01, 0x02, 0x04
REMEMBER, RESTORE_STATE, DEF_CFA, DEF_CFA_OFFSET = 0x0A, 0x0B, 0x0C, 0x0E
DEF_CFA_EXPRESSION, EXPRESSION, OFFSET_EXTENDED, DEF_CFA_OFFSET_SF = 0x0F, 0x10, 0x05, 0x13


def uleb(value):
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def entry(body):
    body += bytes(-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body


START = bytes([DEF_CFA, 7, 8, 0x80 | 16, 1])  # CFA = rsp + 8, return address at CFA - 8


def cie(instructions=START, augmentation=b"zR\0", data=bytes([0x1B]), code=1, align=0x78):
    head = struct.pack("<IB", 0, 1) + augmentation + uleb(code) + bytes([align]) + uleb(16)
    if augmentation.startswith(b"z"):
        head += uleb(len(data)) + data
    return entry(head + instructions)


def fde(at, to_cie, start, size, instructions=b"", size_format="<I"):
    """`at`: offset of this entry in the section; addresses are pc-relative, 4 bytes."""
    relative = (start - (BASE + at + 8)) & 0xFFFFFFFF
    body = struct.pack("<I", (at + 4 - to_cie) & 0xFFFFFFFF) + struct.pack("<I", relative)
    body += struct.pack(size_format, size) + b"\0" + instructions
    return entry(body)


def one(instructions, size=0x1000, first=None):
    head = first if first is not None else cie()
    return head + fde(len(head), 0, 0x10000, size, instructions)


def many(count, start, size, instructions=b""):
    data = cie()
    for index in range(count):
        data += fde(len(data), 0, start(index), size(index), instructions)
    return data


MOVE = bytes([ADVANCE1, 1, DEF_CFA_OFFSET, 16])
PLT = bytes([0x77, 8, 0x80, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x33, 0x24, 0x22])
FILES = {
    # What a compiler writes: two functions with a push each.
    "good": many(2, lambda i: 0x10000 + 0x100 * i, lambda i: 0x80, MOVE + bytes([0x86, 2])),
    "length-too-long": struct.pack("<I", 0x7FFFFFF0) + bytes(64),
    "length-64-bit": struct.pack("<IQ", 0xFFFFFFFF, 1 << 62) + bytes(64),
    "length-reserved": struct.pack("<I", 0xFFFFFFF5) + bytes(64),
    "terminator-first": bytes(4) + one(MOVE),
    "cie-is-itself": fde(0, 0, 0x10000, 64),
    "cie-is-an-fde": cie() + fde(24, 24, 0x10000, 64) + fde(56, 24, 0x20000, 64),
    "cie-ahead": fde(0, -64 & 0xFFFFFFFF, 0x10000, 64) + bytes(64),
    "augmentation-unknown": one(MOVE, first=cie(augmentation=b"zQXRS\0")),
    "augmentation-length-huge": cie()[:17] + b"\xff" * 12 + cie(),
    "augmentation-string-endless": struct.pack("<IIB", 60, 0, 1) + b"z" * 55,
    "pointer-indirect": one(MOVE, first=cie(data=bytes([0x9B]))),
    "pointer-aligned": one(MOVE, first=cie(data=bytes([0x50]))),
    "pointer-omitted": one(MOVE, first=cie(data=bytes([0xFF]))),
    "code-alignment-huge": one(MOVE * 8, first=cie(code=1 << 62)),
    "size-wraps": one(MOVE, size=0xFFFFFFFF),
    "size-zero": one(MOVE, size=0),
    "advance-nowhere": one(bytes([ADVANCE1, 0, DEF_CFA_OFFSET, 16, ADVANCE1, 0, DEF_CFA_OFFSET, 24]) * 500),
    "advance-far": one(bytes([ADVANCE4]) + b"\xff" * 4 + bytes([ADVANCE4]) + b"\xff" * 4),
    "set-loc-backwards": one(MOVE + bytes([SET_LOC]) + struct.pack("<i", -0x8000) + MOVE),
    "remember-forever": one(bytes([REMEMBER]) * 3000),
    "restore-nothing": one(bytes([RESTORE_STATE]) * 100 + MOVE),
    "registers-all": one(b"".join(bytes([OFFSET_EXTENDED]) + uleb(r) + b"\x02" for r in range(1000))),
    "register-huge": one(bytes([DEF_CFA]) + uleb(1 << 60) + uleb(8)),
    "offset-negative": one(bytes([DEF_CFA_OFFSET_SF, 0x7F]) + MOVE),
    "offset-odd": one(bytes([DEF_CFA_OFFSET, 13])),
    "offset-huge": one(bytes([DEF_CFA_OFFSET]) + uleb(1 << 40)),
    "expression-too-long": one(bytes([DEF_CFA_EXPRESSION]) + uleb(1 << 30) + b"\x77\x08"),
    "expression-loops": one(bytes([DEF_CFA_EXPRESSION, 3, 0x2F]) + struct.pack("<h", -3)),
    "expression-nops": one(bytes([DEF_CFA_EXPRESSION]) + uleb(2000) + b"\x96" * 2000),
    "expression-plt": one(bytes([DEF_CFA_EXPRESSION]) + uleb(len(PLT)) + PLT),
    "expression-register": one(bytes([EXPRESSION, 6, 2, 0x76, 0])),
    "signal-frame": one(MOVE, first=cie(augmentation=b"zRS\0")),
    "overlap-equal": many(100, lambda i: 0x10000, lambda i: 0x1000, MOVE),
    "overlap-nested": many(100, lambda i: 0x10000 + i, lambda i: 0x10000, MOVE),
    "overlap-backwards": many(100, lambda i: 0x20000 - 16 * i, lambda i: 0x100, MOVE),
    "cie-long": many(3, lambda i: 0x10000, lambda i: 64) + one(MOVE, first=cie(START + bytes(5000))),
    "cie-run-often": (lambda c: c + b"".join(
        fde(len(c) + 24 * i, 0, 0x10000 + 16 * i, 16) for i in range(100)))(cie(START + MOVE * 900)),
    "address-zero": cie() + fde(24, 0, 0, 0x100, MOVE),
    "cut-in-an-fde": one(MOVE * 40)[:60],
    # The first row is right; what comes behind it nobody knows.
    "unknown-midway": one(MOVE + bytes([0x3F])),
    "states-midway": one(MOVE + bytes([ADVANCE1, 7]) + bytes([REMEMBER]) * 9),
    # The second function begins in the first one, and ends where padding could be.
    "overlap-tail": many(3, lambda i: 0x10000 + 8 * i + 4 * (i == 2), lambda i: 16 - 4 * (i == 1), MOVE),
    "unknown-instructions": one(bytes(range(0x17, 0x40)) * 4),
}

SOURCE = "int f(int a) { return a + 1; }\nint g(int a) { return f(a) * f(a + 1); }\n"
ALLOCATOR = "void *malloc(unsigned long n) { return n ? (void *)16 : 0; }\nvoid free(void *p) { if (p) *(char *)p = 0; }\n"


def main():
    for name, data in FILES.items():
        (HERE / (name + ".eh_frame")).write_bytes(data)
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O1", "-fno-inline", "-shared", "-nostdlib", "-fno-builtin", "-fPIC", "-Wl,-z,noseparate-code", "-Wl,--build-id=none", "-s"]
        for name, text in [("tiny", SOURCE), ("allocator", ALLOCATOR)]:
            source = pathlib.Path(folder, name + ".c")
            source.write_text(text)
            subprocess.run(["gcc", *flags, "-o", HERE / (name + ".elf"), source], check=True)


main()
