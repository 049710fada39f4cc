"""Random ways through Python code, to be run with PYTHONMALLOC=malloc. Stages: see maze.h."""
import collections
import contextlib
import ctypes
import functools
import json
import os
import random
import re
import select
import threading

libc = ctypes.CDLL(None)
COMPARE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)
)
WAYS = []


def way(function):
    WAYS.append(function)
    return function


class Maze(random.Random):
    """How a way goes on: `left` is the number of functions still to enter."""

    left = 0

    def step(self):
        if self.left <= 0:
            return "x" * self.randrange(20, 3000)
        self.left -= 1
        if self.randrange(100) == 0:
            return in_thread(self)
        return self.choice(WAYS)(self)

    def once(self):
        """A function whose first call goes on."""
        ways = [self]
        return lambda: str(ways.pop().step()) if ways else ""


@way
def sorting(maze):
    go_on = maze.once()
    numbers = [maze.random() for _ in range(maze.randrange(2, 60))]
    return sorted(numbers, key=lambda number: go_on() + str(number))


@way
def mapping(maze):
    return list(map(lambda number: maze.step() if number == 3 else number, range(6)))


@way
def reduction(maze):
    go_on = maze.once()
    return functools.reduce(lambda total, number: total + go_on() + str(number), range(9), "")


@way
def substitution(maze):
    go_on = maze.once()
    pattern = re.compile(f"[a-c]+({maze.randrange(1000)}|x{{1,3}})?")
    return pattern.sub(lambda match: match[0] + go_on()[:5], "abc def cab xyz" * 3)


@way
def json_text(maze):
    go_on = maze.once()
    value = {str(number): [number, "text " * number, {"more": go_on()}] for number in range(5)}
    return json.loads(json.dumps(value), object_hook=lambda found: (go_on(), found))


@way
def json_with_default(maze):
    return json.dumps([1, object()], default=lambda _: str(maze.step()))


@way
def c_callback(maze):
    go_on = maze.once()
    numbers = (ctypes.c_int * 5)(3, 1, 2, 0, 4)
    libc.qsort(numbers, 5, 4, COMPARE(lambda a, b: go_on() and 0 or a[0] - b[0]))
    return list(numbers)


@way
def generators(maze):
    def inner(depth):
        yield maze.randrange(1 << 70)
        yield maze.step() if depth == 0 else ""
        if depth > 0:
            yield from inner(depth - 1)

    return [str(value) for value in inner(maze.randrange(4))]


@way
def special_methods(maze):
    class Key:
        def __init__(self, number):
            self.number = number

        def __hash__(self):
            return self.number % 3

        def __eq__(self, other):
            return (go_on(), self.number) == ("", other.number)

        def __repr__(self):
            return f"Key({self.number}, {go_on()!r})"

    go_on = maze.once()
    counted = collections.Counter(Key(number % 7) for number in range(20))
    return repr(counted)


@way
def exceptions(maze):
    try:
        with contextlib.suppress(KeyError), contextlib.ExitStack() as stack:
            stack.callback(lambda: maze.step())
            {}[str(maze.randrange(100))]
        raise ValueError("a text of this call: " + str(maze.random()))
    except ValueError as error:
        return [maze.step(), str(error)]
    finally:
        collections.namedtuple("Point", "x y")(1, 2)


@way
def compiled(maze):
    source = f"def made(maze):\n    return [maze.step(), {maze.randrange(1000)} * 'y']\n"
    names = {}
    exec(compile(source, "made", "exec"), names)
    return names["made"](maze)


@way
def partial(maze):
    return functools.partial(max, key=lambda _: str(maze.step()))([maze.random()])


def in_thread(maze):
    thread = threading.Thread(target=maze.step)
    thread.start()
    thread.join()
    return thread.name


def say(name):
    address = ctypes.cast(libc.malloc, ctypes.c_void_p).value
    line = {"stage": name, "pid": os.getpid(), "malloc": hex(address)}
    os.write(1, (json.dumps(line) + "\n").encode())


def wait_for_byte():
    if os.read(0, 1) == b"":
        raise SystemExit("the test closed stdin")


say("ready")
wait_for_byte()
say("running")
maze = Maze(88172645463325252)
while not select.select([0], [], [], 0)[0]:
    maze.left = maze.randrange(12)
    maze.step()
wait_for_byte()
say("done")
wait_for_byte()
