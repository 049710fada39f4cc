"""For gdb: prints the return addresses of malloc calls as JSON lines.

With ORACLE_SAMPLES, of that many calls of all, chosen at random, one of ORACLE_EVERY; each is
held after its first instructions until a byte comes on stdin. Else of each call for 20,000 to
59,999 bytes.

Frames that are not on the stack, but inferred from debug information, are left out.
"""
import json
import os
import random

import gdb

LONGEST = 200


def say(value):
    # gdb's own lines may be unfinished.
    os.write(1, ("\noracle " + json.dumps(value) + "\n").encode())


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


def register(name):
    return int(gdb.parse_and_eval("(unsigned long)$" + name))


def is_trampoline(address):
    """Whether an address is where the kernel lets functions return to whose return is probed."""
    with open(f"/proc/{gdb.selected_inferior().pid}/maps") as maps:
        lines = [line for line in maps if line.rstrip().endswith("[uprobes]")]
    return any(int(line.split("-")[0], 16) == address for line in lines)


def wait_for_byte():
    if os.read(0, 1) == b"":
        raise SystemExit("the test closed stdin")


def sample(samples, every):
    breakpoint = gdb.Breakpoint("*" + MALLOC, type=gdb.BP_HARDWARE_BREAKPOINT)
    breakpoint.silent = True
    say({"ready": True})
    wait_for_byte()
    chance = random.Random(1)
    nested = 0
    while samples > 0:
        breakpoint.ignore_count = chance.randrange(2 * every - 1)
        gdb.execute("continue", to_string=True)
        if register("rip") != int(MALLOC, 16):
            raise gdb.GdbError("stopped, but not at malloc")
        frames = return_addresses()
        if is_trampoline(int(frames[0], 16)):
            # A tail call of an allocator function whose return address is no longer there.
            nested += 1
            continue
        call = {"frames": frames, "rsp": register("rsp"), "size": register("rdi")}
        # Runs the probe, which is one of the first instructions.
        gdb.execute("stepi 3", to_string=True)
        say({"thread": gdb.selected_thread().ptid[1], **call})
        wait_for_byte()
        samples -= 1
    breakpoint.delete()
    gdb.execute("detach")
    say({"nested": nested})


for setting in [
    "pagination off",
    "debuginfod enabled off",
    "backtrace past-main on",
    "backtrace past-entry off",
    "backtrace limit unlimited",
    "disable-randomization off",
    # gdb takes a tracer's trap in memory for the program's own, and steps behind it: into the
    # middle of the instruction that it hides.
    "trust-readonly-sections on",
    "displaced-stepping off",
    "scheduler-locking step",
]:
    gdb.execute("set " + setting)
gdb.execute("handle SIGUSR1 SIGUSR2 SIGILL nostop noprint pass")
MALLOC = os.environ["ORACLE_MALLOC"]
if "ORACLE_SAMPLES" in os.environ:
    sample(int(os.environ["ORACLE_SAMPLES"]), int(os.environ["ORACLE_EVERY"]))
else:
    # A breakpoint in memory would meet the traps that a tracer had there.
    Malloc("*" + MALLOC, type=gdb.BP_HARDWARE_BREAKPOINT)
    say({"ready": True})
    gdb.execute("continue")
