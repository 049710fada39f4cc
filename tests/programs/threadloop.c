/* Hard case: nothing but malloc and free, on two threads at once. Prints pairs_per_s of both. */
#include "rate.h"

#include <pthread.h>

#define THREADS 2

static double seconds;

SITE void pair(void)
{
    void *block = malloc(61);
    /* The compiler must believe that the block is used. */
    __asm__ volatile("" : "+r"(block) : : "memory");
    free(block);
}

static void *run(void *pairs)
{
    uint64_t rounds = 0;
    double start = seconds_now();
    while (seconds_now() - start < seconds) {
        for (int i = 0; i < 1000; i++)
            pair();
        rounds += 1000;
    }
    *(uint64_t *)pairs = rounds;
    return NULL;
}

/* Stages: ready, (byte: run) done with the rate, (byte) end. The argument: seconds. */
int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    uint64_t pairs[THREADS], sum = 0;
    check(argc == 2, "usage: threadloop SECONDS");
    seconds = strtod(argv[1], NULL);
    check(seconds > 0, "SECONDS is more than 0");
    line_begin("ready");
    line_end();
    wait_for_byte();
    double start = seconds_now();
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, run, &pairs[i]) == 0, "pthread_create");
    for (int i = 0; i < THREADS; i++) {
        check(pthread_join(threads[i], NULL) == 0, "pthread_join");
        sum += pairs[i];
    }
    line_begin("done");
    line_add(",\"pairs_per_s\":%.1f", (double)sum / (seconds_now() - start));
    line_end();
    wait_for_byte();
    return 0;
}
