/*
 * One block on each of 32,768 different stacks: more than leaktrace has room for. The bits of a
 * number say at each depth which of two functions calls on. Stages: ready, (byte: allocate)
 * holding, (byte) end.
 */
#include "account.h"

#define DEPTH 15
#define PATHS (1u << DEPTH)

static void *step(unsigned path, unsigned depth);

SITE void *site_end(void) { return malloc(37); }
SITE void *left(unsigned path, unsigned depth) { return step(path, depth); }
SITE void *right(unsigned path, unsigned depth) { return step(path, depth); }

__attribute__((noinline)) static void *step(unsigned path, unsigned depth)
{
    if (depth == 0)
        return site_end();
    return path & 1 ? left(path >> 1, depth - 1) : right(path >> 1, depth - 1);
}

static struct account accounts[] = {{.name = "site_end"}};

int main(void)
{
    stage("ready", accounts, 1);
    for (unsigned path = 0; path < PATHS; path++) {
        check(step(path, DEPTH) != NULL, "malloc");
        account_allocated(&accounts[0], 37);
    }
    stage("holding", accounts, 1);
    return 0;
}
