/*
 * A stack of a known depth, for measuring: DEPTH frames of four functions that
 * call each other, then malloc and free in a loop.
 *
 * Stages: ready, (byte: 500 rounds) warm, (byte: 3,000 rounds) done, (byte) end.
 */
#include "account.h"

static void *volatile block;

SITE unsigned north(unsigned depth, unsigned rounds);
SITE unsigned east(unsigned depth, unsigned rounds);
SITE unsigned south(unsigned depth, unsigned rounds);
SITE unsigned west(unsigned depth, unsigned rounds);

static inline __attribute__((always_inline)) unsigned
step(unsigned (*next)(unsigned, unsigned), unsigned depth, unsigned rounds)
{
    unsigned result = depth;
    /* A frame as large as they are in real programs. */
    char room[80];
    __asm__ volatile("" : : "r"(room) : "memory");
    if (depth > 1) {
        result += next(depth - 1, rounds);
    } else {
        for (unsigned i = 0; i < rounds; i++) {
            block = malloc(61);
            check(block != NULL, "malloc");
            free(block);
        }
    }
    /* Work after the call, so that it is one. */
    __asm__ volatile("" : "+r"(result) : : "memory");
    return result;
}

unsigned north(unsigned depth, unsigned rounds) { return step(east, depth, rounds); }
unsigned east(unsigned depth, unsigned rounds) { return step(south, depth, rounds); }
unsigned south(unsigned depth, unsigned rounds) { return step(west, depth, rounds); }
unsigned west(unsigned depth, unsigned rounds) { return step(north, depth, rounds); }

int main(int argc, char **argv)
{
    check(argc == 2, "usage: stairs DEPTH");
    unsigned depth = (unsigned)strtoul(argv[1], NULL, 10);
    stage("ready", NULL, 0);
    unsigned sum = north(depth, 500);
    stage("warm", NULL, 0);
    sum += north(depth, 3000);
    check(sum != 0, "DEPTH is 1 or more");
    stage("done", NULL, 0);
    return 0;
}
