/*
 * Hard case: many small blocks and few large ones from one call site, of which
 * sampling sees some; and calls that call another function of the allocator.
 *
 * Arguments: SMALL (a multiple of 16) ROUNDS. Each round holds SMALL blocks of 16 bytes, 16 of 4 MiB
 * and SMALL / 4 of 48 bytes from reallocarray, which calls realloc (glibc, musl).
 *
 * Stages: ready, ROUNDS times (byte: allocate) holding, (byte: free) freed, end.
 */
#define _GNU_SOURCE
#include "account.h"

#define LARGE 16
#define SMALL_BYTES 16
#define LARGE_BYTES (4 << 20)
#define NESTED_BYTES 48
#define MAX_BLOCKS (2 << 20)

static void *blocks[MAX_BLOCKS];
static size_t sizes[MAX_BLOCKS];
static size_t count;
enum { MIXED, NESTED, ACCOUNTS };
static struct account accounts[] = {{.name = "site_mixed"}, {.name = "site_nested"}};
static unsigned char owners[MAX_BLOCKS];

SITE void *site_mixed(size_t bytes) { return malloc(bytes); }
SITE void *site_nested(void) { return reallocarray(NULL, 3, NESTED_BYTES / 3); }

static void keep(void *block, size_t bytes, int account)
{
    check(block != NULL && count < MAX_BLOCKS, "an allocation");
    account_allocated(&accounts[account], bytes);
    blocks[count] = block;
    sizes[count] = bytes;
    owners[count++] = (unsigned char)account;
}

int main(int argc, char **argv)
{
    check(argc == 3, "usage: sampling SMALL ROUNDS");
    long small = strtol(argv[1], NULL, 10), rounds = strtol(argv[2], NULL, 10);
    stage("ready", accounts, ACCOUNTS);
    for (long round = 0; round < rounds; round++) {
        for (long i = 0; i < small + LARGE; i++) {
            /* One call of both: they have one stack. */
            size_t bytes = i % (small / LARGE + 1) == 0 ? LARGE_BYTES : SMALL_BYTES;
            keep(site_mixed(bytes), bytes, MIXED);
        }
        for (long i = 0; i < small / 4; i++)
            keep(site_nested(), NESTED_BYTES, NESTED);
        stage("holding", accounts, ACCOUNTS);
        while (count > 0) {
            count--;
            free(blocks[count]);
            account_freed(&accounts[owners[count]], sizes[count]);
        }
        stage("freed", accounts, ACCOUNTS);
    }
    return 0;
}
