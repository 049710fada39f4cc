/*
 * Hard case: a steady load. PAIRS of malloc(61) and free every 10 ms, until a
 * byte comes.
 *
 * Stages: ready, (byte: start) running, (byte) end.
 */
#include "account.h"

#include <poll.h>
#include <time.h>

SITE void pair(void)
{
    void *block = malloc(61);
    /* The compiler must believe that the block is used. */
    __asm__ volatile("" : "+r"(block) : : "memory");
    free(block);
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage: paced PAIRS");
    long pairs = strtol(argv[1], NULL, 10);
    line_begin("ready");
    line_end();
    wait_for_byte();
    line_begin("running");
    line_end();
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec next;
    check(clock_gettime(CLOCK_MONOTONIC, &next) == 0, "clock_gettime");
    while (poll(&input, 1, 0) == 0) {
        for (long i = 0; i < pairs; i++)
            pair();
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
