/*
 * Hard case: more live blocks than a tracer may have room for. 10,000 blocks of
 * 113 bytes from one call site, and no other allocation.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end without freeing.
 */
#include "account.h"

#define BLOCKS 10000
#define BYTES 113

static void *blocks[BLOCKS];
static struct account accounts[] = {{.name = "site_many"}};

SITE void *site_many(void) { return malloc(BYTES); }

int main(void)
{
    stage("ready", accounts, 1);
    for (size_t i = 0; i < BLOCKS; i++) {
        blocks[i] = site_many();
        check(blocks[i] != NULL, "malloc");
        account_allocated(&accounts[0], BYTES);
    }
    stage("holding", accounts, 1);
    return 0;
}
