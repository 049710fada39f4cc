/*
 * Hard case: call sites that look alike in one report, and of which two leak.
 * From the first byte on, each 10 ms:
 *   site_rare    allocates 20 blocks and frees them, but for each 5000th;
 *   site_steady  allocates one block and keeps it;
 *   site_cache   allocates one block; a cache of 500 blocks frees its oldest;
 *   site_batch   allocates one block; all are freed each second.
 * site_pool allocates 64 blocks at the start.
 *
 * Stages: ready, (byte: start) running, (byte) end.
 */
#include "account.h"

#include <poll.h>
#include <time.h>

#define CACHE 500
#define BATCH 100

/* Volatile: what is never read would not be kept, and its blocks be lost. */
static void *volatile pool[64], *volatile cache[CACHE], *volatile batch[BATCH];
static unsigned long ticks, rare;

SITE void *site_rare(void)
{
    void *block = malloc(40);
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

SITE void *site_steady(void)
{
    void *block = malloc(48);
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

SITE void *site_cache(void)
{
    void *block = malloc(56);
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

SITE void *site_batch(void)
{
    void *block = malloc(64);
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

SITE void *site_pool(void)
{
    void *block = malloc(72);
    __asm__ volatile("" : "+r"(block) : : "memory");
    return block;
}

static void tick(void)
{
    for (int i = 0; i < 20; i++) {
        void *block = site_rare();
        if (++rare % 5000 != 0)
            free(block);
    }
    site_steady();
    free(cache[ticks % CACHE]);
    cache[ticks % CACHE] = site_cache();
    if (ticks % BATCH == 0)
        for (int i = 0; i < BATCH; i++)
            free(batch[i]);
    batch[ticks % BATCH] = site_batch();
    ticks++;
}

int main(void)
{
    line_begin("ready");
    line_end();
    wait_for_byte();
    for (size_t i = 0; i < sizeof pool / sizeof pool[0]; i++)
        pool[i] = site_pool();
    line_begin("running");
    line_end();
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec next;
    check(clock_gettime(CLOCK_MONOTONIC, &next) == 0, "clock_gettime");
    while (poll(&input, 1, 0) == 0) {
        tick();
        next.tv_nsec += 10000000;
        if (next.tv_nsec >= 1000000000) {
            next.tv_nsec -= 1000000000;
            next.tv_sec++;
        }
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) == EINTR)
            ;
    }
    wait_for_byte();
    return 0;
}
