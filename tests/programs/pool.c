/*
 * A program with an allocator of its own on mmap, which no list has: pool_malloc and
 * its relatives. libc's malloc is mapped, but not called.
 *
 * With the argument `grow` it then allocates until the test goes on. Stages: ready,
 * (byte: allocate) holding, (byte) end.
 */
#define _GNU_SOURCE
#include "account.h"

#include <poll.h>
#include <sys/mman.h>

#define POOL_BYTES ((size_t)1 << 30)
#define STEP_BYTES ((size_t)64 << 10)

static char *pool, *next;

/* A block is preceded by its size; what is freed is not used again. */
__attribute__((noinline)) void *pool_malloc(size_t size)
{
    if (pool == NULL || size > (size_t)(pool + POOL_BYTES - next) - 32)
        return NULL;
    char *block = next + 16;
    next = block + (size + 15) / 16 * 16;
    memcpy(block - 16, &size, sizeof size);
    return block;
}

__attribute__((noinline)) void *pool_calloc(size_t count, size_t size)
{
    size_t bytes;
    return __builtin_mul_overflow(count, size, &bytes) ? NULL : pool_malloc(bytes);
}

__attribute__((noinline)) void pool_free(void *block)
{
    if (block != NULL)
        memset((char *)block - 16, 0, 16);
}

/* C23's form. */
__attribute__((noinline)) void pool_free_sized(void *block, size_t size)
{
    check(memcmp((char *)block - 16, &size, sizeof size) == 0, "size of a block");
    memset((char *)block - 16, 0, 16);
}

SITE void *site_pool(void) { return pool_malloc(61); }
SITE void *site_pool_array(void) { return pool_calloc(3, 23); }

static struct account accounts[] = {{.name = "site_pool"}, {.name = "site_pool_array"}};

int main(int argc, char **argv)
{
    int grows = argc > 1 && strcmp(argv[1], "grow") == 0;
    pool = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(pool != MAP_FAILED, "mmap");
    next = pool;
    stage("ready", accounts, 2);
    for (int i = 0; i < 7; i++) {
        void *block = site_pool(), *array = site_pool_array();
        account_allocated(&accounts[0], 61);
        account_allocated(&accounts[1], 69);
        if (i < 3) {
            pool_free(block);
            pool_free_sized(array, 69);
            account_freed(&accounts[0], 61);
            account_freed(&accounts[1], 69);
        }
    }
    /* 64 KiB in each 10 ms. */
    struct pollfd told = {.fd = STDIN_FILENO, .events = POLLIN};
    while (grows && poll(&told, 1, 10) == 0) {
        void *block = pool_malloc(STEP_BYTES);
        check(block != NULL, "the pool is full");
        memset(block, 1, STEP_BYTES);
    }
    if (grows)
        wait_for_byte();
    stage("holding", accounts, 2);
    return 0;
}
