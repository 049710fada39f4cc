/*
 * Hard case: a deep stack. One block of 1,237 bytes below as many frames of
 * `descend` as the argument says; the tracer shows them all, or says that the
 * stack is cut.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end without freeing.
 */
#include "account.h"

#define BYTES 1237

static struct account accounts[] = {{.name = "site_deep"}};
static void *block;

SITE void *site_deep(void) { return malloc(BYTES); }

/* `depth` frames of this function, then the call. */
SITE void *descend(unsigned depth)
{
    void *result = depth > 1 ? descend(depth - 1) : site_deep();
    /* Work after the call, so that it is one. */
    __asm__ volatile("" : "+r"(result) : : "memory");
    return result;
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage: deep DEPTH");
    unsigned depth = (unsigned)strtoul(argv[1], NULL, 10);
    check(depth > 0, "DEPTH is 1 or more");
    stage("ready", accounts, 1);
    block = descend(depth);
    check(block != NULL, "malloc");
    account_allocated(&accounts[0], BYTES);
    stage("holding", accounts, 1);
    return 0;
}
