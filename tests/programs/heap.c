/*
 * Hard case: a heap to be looked through. argv: MiB, blocks. Every fourth word of each block is the
 * address of another one, chosen by chance; the others are small numbers. The first block hangs
 * from a global, and leads to all others.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end.
 */
#include "account.h"

#include <sys/mman.h>

static void **volatile root;

SITE void *site_heap(size_t bytes) { return malloc(bytes); }

static uint64_t chance = 88172645463325252ULL;

/* George Marsaglia, Xorshift RNGs, 2003. */
static uint64_t next(void)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return chance;
}

int main(int argc, char **argv)
{
    check(argc == 3, "heap MIB BLOCKS");
    size_t blocks = strtoull(argv[2], NULL, 10);
    size_t bytes = (strtoull(argv[1], NULL, 10) << 20) / blocks;
    check(blocks > 0 && bytes >= 32, "at least 32 bytes a block");
    line_begin("ready");
    line_end();
    wait_for_byte();

    /* Of the program's own, and gone before it is looked at. */
    size_t table_bytes = blocks * sizeof(void *);
    void ***all = mmap(NULL, table_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(all != MAP_FAILED, "mmap");
    for (size_t at = 0; at < blocks; at++) {
        all[at] = site_heap(bytes);
        check(all[at] != NULL, "malloc");
    }
    for (size_t at = 0; at < blocks; at++) {
        for (size_t word = 0; word < bytes / sizeof(void *); word++) {
            uint64_t any = next();
            all[at][word] = (void *)(any % 1000);
            if (word % 4 == 0)
                all[at][word] = all[any % blocks];
        }
        /* So that there is a way to each. */
        all[at][0] = all[(at + 1) % blocks];
    }
    root = all[0];
    check(munmap(all, table_bytes) == 0, "munmap");
    line_begin("holding");
    line_end();
    wait_for_byte();
    return 0;
}
