/*
 * Hard case: a million live blocks, and pairs of free and malloc among them.
 *
 * Stages: ready, (byte: allocate all) ready again, (byte: run) done with pairs_per_s, (byte) end.
 * A block is freed before the next one is allocated: there are never more than BLOCKS.
 */
#include "rate.h"

#define BLOCKS 1000000
#define BYTES 61

static void *blocks[BLOCKS];
static unsigned next;

SITE void *site_live(void) { return malloc(BYTES); }

SITE void pair(void)
{
    /* A prime: each block has its turn, none in the order of their addresses. */
    next = (next + 611953) % BLOCKS;
    free(blocks[next]);
    blocks[next] = site_live();
}

int main(int argc, char **argv)
{
    line_begin("ready");
    line_end();
    wait_for_byte();
    for (unsigned i = 0; i < BLOCKS; i++) {
        blocks[i] = site_live();
        check(blocks[i] != NULL, "malloc");
    }
    return run_rate(argc, argv, "pairs", pair);
}
