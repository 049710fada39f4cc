/*
 * Many threads that allocate at once, each below a stack of its own depth: no
 * stack may lose frames to another's, or gain some.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end without freeing. Thread n
 * of THREADS makes 2,000 blocks below n frames of `descend`.
 */
#include "account.h"

#include <pthread.h>

#define MOST 64
#define BLOCKS 2000
#define BYTES 1543

static struct account accounts[] = {{.name = "site_crowd"}};
static pthread_barrier_t barrier;
static void *blocks[MOST][BLOCKS];

SITE void *site_crowd(void) { return malloc(BYTES); }

SITE void *descend(unsigned long depth)
{
    void *result = depth > 1 ? descend(depth - 1) : site_crowd();
    /* Work after the call, so that it is one. */
    __asm__ volatile("" : "+r"(result) : : "memory");
    return result;
}

static void *run(void *argument)
{
    unsigned long number = (unsigned long)argument;
    pthread_barrier_wait(&barrier);
    for (size_t i = 0; i < BLOCKS; i++) {
        blocks[number - 1][i] = descend(number);
        check(blocks[number - 1][i] != NULL, "malloc");
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[MOST];
    check(argc == 2, "usage: crowd THREADS");
    unsigned long count = strtoul(argv[1], NULL, 10);
    check(count > 0 && count <= MOST, "THREADS is 1 to 64");
    stage("ready", accounts, 1);
    check(pthread_barrier_init(&barrier, NULL, (unsigned)count) == 0, "barrier");
    for (unsigned long i = 0; i < count; i++)
        check(pthread_create(&threads[i], NULL, run, (void *)(i + 1)) == 0, "pthread_create");
    for (unsigned long i = 0; i < count; i++)
        check(pthread_join(threads[i], NULL) == 0, "pthread_join");
    accounts[0].allocated_count = count * BLOCKS;
    accounts[0].allocated_bytes = count * BLOCKS * BYTES;
    stage("holding", accounts, 1);
    return 0;
}
