"""For gdb: prints the return addresses of each malloc of 20,000 to 59,999 bytes as a JSON line.

Frames that are not on the stack, but inferred from debug information, are left out.
"""
import json
import os

import gdb

LONGEST = 200


def say(value):
    os.write(1, ("oracle " + json.dumps(value) + "\n").encode())


def return_addresses():
    addresses = []
    interrupted = False
    frame = gdb.newest_frame()
    while frame is not None and len(addresses) <= LONGEST:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            # leaktrace adds one to an interrupted address, as the call is before a return address.
            addresses.append(hex(frame.pc() + (1 if interrupted else 0)))
            interrupted = frame.type() == gdb.SIGTRAMP_FRAME
        frame = frame.older()
    return addresses[1:]


class Malloc(gdb.Breakpoint):
    def stop(self):
        size = int(gdb.parse_and_eval("(unsigned long)$rdi"))
        if 20000 <= size < 60000:
            say({"size": size, "frames": return_addresses()})
        return False


for setting in [
    "pagination off",
    "debuginfod enabled off",
    "backtrace past-main on",
    "backtrace past-entry off",
    "backtrace limit unlimited",
    "disable-randomization off",
]:
    gdb.execute("set " + setting)
gdb.execute("handle SIGUSR1 SIGUSR2 SIGILL nostop noprint pass")
# A breakpoint in memory would meet the traps that a tracer had there.
Malloc("*" + os.environ["ORACLE_MALLOC"], type=gdb.BP_HARDWARE_BREAKPOINT)
say({"ready": True})
gdb.execute("continue")
