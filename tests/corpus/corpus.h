/*
 * What the programs of the corpus share: work that is paced by the clock, so that
 * a busy machine changes no rate, and bookkeeping that never calls malloc.
 *
 * Stages: ready, (byte: run) and then until stdin ends.
 */
#ifndef LEAKTRACE_CORPUS_H
#define LEAKTRACE_CORPUS_H

#include "../programs/account.h"

#include <poll.h>
#include <time.h>

/* Turns a second. */
#define TURNS 50

/* The turn that runs; the first is 0. */
static uint64_t turn;

/* A case of a program. `before` runs before the tracer comes; either may be NULL. */
struct corpus_case {
    const char *name;
    void (*before)(void);
    void (*each_turn)(void);
};

/* xorshift64*: the same numbers in each run. */
static uint64_t random_state = 88172645463325252ULL;

static inline uint64_t random_below(uint64_t limit)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (random_state * 2685821657736338717ULL >> 33) % limit;
}

/* Whether something that happens `hertz` times a second is due in this turn; `hertz` up to TURNS. */
static inline int is_due(double hertz)
{
    return (uint64_t)((double)(turn + 1) * hertz / TURNS) > (uint64_t)((double)turn * hertz / TURNS);
}

/* How often in this turn something happens that happens `hertz` times a second. */
static inline unsigned times(double hertz)
{
    return (unsigned)((uint64_t)((double)(turn + 1) * hertz / TURNS) -
                      (uint64_t)((double)turn * hertz / TURNS));
}

static inline double seconds_so_far(void) { return (double)turn / TURNS; }

/* The compiler must believe that a block is used. */
static inline void *used(void *block)
{
    check(block != NULL, "no memory");
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

/* Nothing of a block's address stays on the stack below, where a scan could find it. */
static __attribute__((noinline)) void clean_stack(void)
{
    volatile unsigned char room[4096];
    for (size_t i = 0; i < sizeof room; i++)
        room[i] = 0;
}

/* Runs the case named on the command line. */
static inline int run_corpus(int argc, char **argv, const struct corpus_case *cases, size_t count)
{
    check(argc == 2, "usage: PROGRAM CASE");
    const struct corpus_case *chosen = NULL;
    for (size_t i = 0; i < count; i++)
        if (strcmp(cases[i].name, argv[1]) == 0)
            chosen = &cases[i];
    check(chosen != NULL, "no such case");
    if (chosen->before)
        chosen->before();
    line_begin("ready");
    line_end();
    wait_for_byte();

    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    struct timespec next;
    check(clock_gettime(CLOCK_MONOTONIC, &next) == 0, "clock_gettime");
    /* Turns that come late are made up for. */
    for (; poll(&input, 1, 0) == 0; turn++) {
        chosen->each_turn();
        clean_stack();
        next.tv_nsec += 1000000000 / TURNS;
        if (next.tv_nsec >= 1000000000) {
            next.tv_nsec -= 1000000000;
            next.tv_sec++;
        }
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) == EINTR)
            ;
    }
    return 0;
}

#endif
