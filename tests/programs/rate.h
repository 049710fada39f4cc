/* A loop that runs for some seconds and prints how often it went round. */
#ifndef LEAKTRACE_TEST_RATE_H
#define LEAKTRACE_TEST_RATE_H

#include "account.h"

#include <time.h>

static inline double seconds_of(clockid_t clock)
{
    struct timespec now;
    check(clock_gettime(clock, &now) == 0, "clock_gettime");
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline double seconds_now(void) { return seconds_of(CLOCK_MONOTONIC); }

/* Stages: ready, (byte: run) done with the rate, (byte) end. The argument: seconds. */
static inline int run_rate(int argc, char **argv, const char *unit, void (*round)(void))
{
    check(argc == 2, "usage: PROGRAM SECONDS");
    double seconds = strtod(argv[1], NULL);
    check(seconds > 0, "SECONDS is more than 0");
    line_begin("ready");
    line_end();
    wait_for_byte();

    uint64_t rounds = 0;
    double start = seconds_now(), now = start, cpu_start = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    while (now - start < seconds) {
        /* The clock is read once in a thousand rounds: it must not show in the rate. */
        for (int i = 0; i < 1000; i++)
            round();
        rounds += 1000;
        now = seconds_now();
    }

    /* Other processes on the CPU do not show in the last figure. */
    double cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_start;
    line_begin("done");
    line_add(",\"%s\":%llu,\"seconds\":%.6f,\"%s_per_s\":%.1f,\"%s_per_cpu_s\":%.1f", unit,
             (unsigned long long)rounds, now - start, unit, (double)rounds / (now - start), unit,
             (double)rounds / cpu);
    line_end();
    wait_for_byte();
    return 0;
}

#endif
