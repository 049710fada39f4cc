"""Python code, to be run with PYTHONMALLOC=malloc. Stages: see unwind.h."""
import ctypes
import json
import os

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
COMPARE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)
)
numbers = (ctypes.c_int * 4)(3, 1, 2, 0)


def nested(depth, size):
    if depth == 0:
        return libc.malloc(size)
    if depth % 2:
        return sorted([depth], key=lambda item: nested(item - 1, size) or 0)
    return max(map(lambda item: nested(item - 1, size) is None, [depth]))


def compare_with(size):
    calls = []

    def compare(a, b):
        calls.append(None)
        if len(calls) == 2:
            libc.malloc(size)
        return a[0] - b[0]

    return compare


def round_of_calls():
    libc.malloc(24001)
    nested(4, 24003)
    callback = COMPARE(compare_with(24005))
    libc.qsort(numbers, 4, 4, callback)
    nested(9, 24007)


def stage(name):
    address = ctypes.cast(libc.malloc, ctypes.c_void_p).value
    line = {"stage": name, "pid": os.getpid(), "malloc": hex(address)}
    os.write(1, (json.dumps(line) + "\n").encode())
    if os.read(0, 1) == b"":
        raise SystemExit("the test closed stdin")


# The interpreter specializes code that runs often, which changes its C stack.
for _ in range(100):
    round_of_calls()
stage("ready")
for name in ["traced", "checked"]:
    round_of_calls()
    stage(name)
