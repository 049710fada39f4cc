"""bpf(2) and instructions by hand, for the bench's own small BPF programs."""
import ctypes
import struct
import sys

# include/uapi/linux/bpf.h
MAP_CREATE, PROG_LOAD, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, LINK_CREATE, ENABLE_STATS = 0, 5, 13, 15, 28, 32
KPROBE, UPROBE_MULTI, UPROBE_SESSION = 2, 48, 57
SYS_BPF = 321

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        sys.exit(f"bpf({command}): errno {ctypes.get_errno()}")
    return result


def op(code, to=0, source=0, offset=0, value=0):
    return struct.pack("<BBhi", code, to | source << 4, offset, value)


def number(to, value):
    return op(0xB7, to, value=value)


RETURN = op(0x95)


def load(code, name, attach_type):
    """A program for uprobe_multi or session links."""
    code_buffer, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    return bpf(PROG_LOAD, struct.pack("<IIQQIIQII16sII", KPROBE, len(code) // 8, ctypes.addressof(code_buffer),
                                      ctypes.addressof(licence), 0, 0, 0, 0, 0, name, 0, attach_type))


def attach(program, attach_type, path, offsets, pid):
    path_buffer = ctypes.create_string_buffer(path.encode())
    places = (ctypes.c_uint64 * len(offsets))(*offsets)
    return bpf(LINK_CREATE, struct.pack("<IIIIQQQQIIII", program, 0, attach_type, 0, ctypes.addressof(path_buffer),
                                        ctypes.addressof(places), 0, 0, len(offsets), 0, pid, 0))
