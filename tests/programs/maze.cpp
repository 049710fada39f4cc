/*
 * Random ways through C++ code without frame pointers: templates, virtual
 * calls, lambdas, containers, exceptions and what runs while they pass.
 * Stages: see maze.h.
 */
#include "maze.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

/* What is at `pointer` is used, for all that the compiler knows; and no call before it is a tail
   call. */
static inline void use(const void *pointer)
{
    __asm__ volatile("" : : "r"(pointer) : "memory");
}

static void step(maze &maze);

struct Room {
    virtual ~Room() = default;
    virtual void enter(maze &maze) = 0;
};

struct Hall : Room {
    __attribute__((noinline)) void enter(maze &maze) override
    {
        auto block = std::make_unique<char[]>(1 + maze_random(&maze, 3000));
        use(block.get());
        step(maze);
    }
};

struct Base {
    virtual ~Base() = default;
    long field = 1;
};

/* Entered through a thunk, as `Room` is its second base. */
struct Vault : Base, Room {
    __attribute__((noinline)) void enter(maze &maze) override
    {
        step(maze);
        use(&field);
    }
};

SITE void virtual_call(maze &maze)
{
    std::unique_ptr<Room> room;
    if (maze_random(&maze, 2))
        room = std::make_unique<Hall>();
    else
        room = std::make_unique<Vault>();
    room->enter(maze);
}

/* A function of its own, with a frame of its own, for each `N`. */
template <int N> struct Corridor {
    __attribute__((noinline)) static void enter(maze &maze)
    {
        char wall[N * 40 + 8];
        use(wall);
        std::vector<int> numbers(N * 3, N);
        if constexpr (N > 1)
            Corridor<N - 1>::enter(maze);
        else
            step(maze);
        use(numbers.data());
    }
};

SITE void sorting(maze &maze)
{
    std::vector<std::string> texts;
    for (unsigned i = maze_random(&maze, 30) + 2; i > 0; i--)
        texts.push_back("a text beyond the short ones " + std::to_string(maze_random(&maze, 100)));
    bool once = true;
    std::sort(texts.begin(), texts.end(), [&](const std::string &a, const std::string &b) {
        if (std::exchange(once, false))
            step(maze);
        return a < b;
    });
}

SITE void function_object(maze &maze)
{
    std::string captured(maze_random(&maze, 100) + 20, 'x');
    std::function<void()> function = [captured, &maze] {
        step(maze);
        use(captured.data());
    };
    function();
    use(&function);
}

SITE void containers(maze &maze)
{
    std::map<std::string, std::vector<int>> tree;
    std::unordered_map<int, std::string> table;
    for (unsigned i = maze_random(&maze, 20) + 1; i > 0; i--) {
        unsigned key = maze_random(&maze, 1000);
        tree[std::to_string(key) + " is a key in the tree"].push_back(1);
        table.emplace(key, std::string(key / 4, 'y'));
    }
    auto copy = tree;
    std::ostringstream stream;
    for (const auto &[key, value] : copy)
        stream << key << value.size();
    use(stream.str().data());
    step(maze);
}

SITE void regular_expression(maze &maze)
{
    std::regex expression("(a|b" + std::to_string(maze_random(&maze, 9)) + ")*c{1,3}[d-f]+");
    std::smatch match;
    std::string text = "ababab3ccdef";
    use(std::regex_search(text, match, expression) ? &match : nullptr);
    step(maze);
}

/* Allocates while an exception passes, and may even go on. */
struct Guard {
    maze &way;
    bool goes_on;
    __attribute__((noinline)) ~Guard()
    {
        use(std::make_unique<char[]>(1 + maze_random(&way, 500)).get());
        if (goes_on)
            step(way);
    }
};

struct Thrown : std::runtime_error {
    using std::runtime_error::runtime_error;
    char more[100] = {};
};

SITE void throws(maze &maze, unsigned depth)
{
    Guard guard{maze, depth == 1 && maze_random(&maze, 2) == 0};
    if (depth == 0)
        throw Thrown("an exception with a text that is too long to be a short one");
    throws(maze, depth - 1);
    use(&guard);
}

SITE void exceptions(maze &maze)
{
    try {
        try {
            throws(maze, maze_random(&maze, 6));
        } catch (const std::exception &error) {
            use(std::string(error.what()).data());
            throw;
        }
    } catch (const Thrown &error) {
        use(std::make_unique<std::string>(error.what()).get());
        step(maze);
    }
}

SITE void in_thread(maze &maze)
{
    std::thread thread([&maze] { step(maze); });
    thread.join();
}

__attribute__((noinline)) static void step(maze &maze)
{
    static void (*const ways[])(struct maze &) = {
        virtual_call, Corridor<3>::enter, Corridor<7>::enter, sorting,
        function_object, containers, exceptions, regular_expression,
    };
    if (maze.left == 0) {
        use(std::make_unique<std::string>(1 + maze_random(&maze, 3000), 'z').get());
        return;
    }
    maze.left--;
    if (maze_random(&maze, 100) == 0)
        in_thread(maze);
    else
        ways[maze_random(&maze, std::size(ways))](maze);
    use(nullptr);
}

int main()
{
    maze_run([](maze *maze) { step(*maze); }, 12);
    return 0;
}
