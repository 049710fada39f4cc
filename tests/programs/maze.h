/*
 * Programs that take random ways through their functions, and allocate on the
 * way, so that no two stacks need be equal. (The ways are the same in each run.)
 *
 * Stages: ready, (byte) running: rounds until the next byte; done, (byte) end.
 */
#ifndef LEAKTRACE_TEST_MAZE_H
#define LEAKTRACE_TEST_MAZE_H

#include "unwind.h"

#include <poll.h>

/* How a way goes on: `left` is the number of functions still to enter. */
struct maze {
    uint64_t seed;
    unsigned left;
};

/* Below `bound`: xorshift, of which the high half is taken. */
static inline unsigned maze_random(struct maze *maze, unsigned bound)
{
    uint64_t x = maze->seed;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    maze->seed = x;
    return (unsigned)(x >> 32) % bound;
}

static inline int maze_input_waits(void)
{
    struct pollfd input = {STDIN_FILENO, POLLIN, 0};
    return poll(&input, 1, 0) > 0;
}

/* Rounds of up to `deepest` functions, and now and then of one that is much deeper. */
static inline void maze_run(void (*round)(struct maze *), unsigned deepest)
{
    struct maze maze = {88172645463325252u, 0};
    unwind_stage("ready");
    line_begin("running");
    line_end();
    for (unsigned i = 0; !maze_input_waits(); i++) {
        maze.left = maze_random(&maze, i % 64 == 63 ? 4 * deepest : deepest);
        round(&maze);
    }
    wait_for_byte();
    unwind_stage("done");
}

#endif
