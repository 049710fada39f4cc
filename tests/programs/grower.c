/*
 * Hard case: memory that grows in ways that malloc explains, and in others: MiB of blocks of
 * malloc, of mappings of its own, of shared mappings, and of memory that it had before and writes
 * to only now.
 *
 * Arguments: bytes of a block, then the four sizes in MiB.
 * Stages: ready, (byte: grow) holding, (byte) end without freeing.
 */
#include <sys/mman.h>

#include "account.h"

#define MIB ((size_t)1 << 20)

static struct account accounts[] = {{.name = "grow_blocks"}};

SITE void *grow_blocks(size_t bytes) { return malloc(bytes); }

static char *map(size_t bytes, int how)
{
    if (bytes == 0)
        return NULL;
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, how | MAP_ANONYMOUS, -1, 0);
    check(at != MAP_FAILED, "mmap");
    /* Resident memory is to be what was written to, page by page. */
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return at;
}

static void write_to(char *at, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 4096)
        at[i] = 1;
}

int main(int argc, char **argv)
{
    check(argc == 6, "usage: grower BLOCK_BYTES MALLOC_MIB MAPPED_MIB SHARED_MIB BEFORE_MIB");
    size_t block = strtoul(argv[1], NULL, 10);
    size_t sizes[4];
    for (int i = 0; i < 4; i++)
        sizes[i] = strtoul(argv[i + 2], NULL, 10) * MIB;
    char *before = map(sizes[3], MAP_PRIVATE);
    stage("ready", accounts, 1);
    for (size_t done = 0; done + block <= sizes[0]; done += block) {
        char *at = grow_blocks(block);
        check(at != NULL, "malloc");
        memset(at, 1, block);
        account_allocated(&accounts[0], block);
    }
    write_to(map(sizes[1], MAP_PRIVATE), sizes[1]);
    write_to(map(sizes[2], MAP_SHARED), sizes[2]);
    write_to(before, sizes[3]);
    stage("holding", accounts, 1);
    return 0;
}
