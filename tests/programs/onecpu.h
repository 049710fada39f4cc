/*
 * Threads that preempt one another on one CPU, at any instruction, also in the
 * kernel where it permits that: each has a priority of its own, sleeps some
 * microseconds now and then, and takes the CPU when it wakes.
 */
#ifndef LEAKTRACE_TEST_ONECPU_H
#define LEAKTRACE_TEST_ONECPU_H

#include "account.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

/* Has the calling thread, and those that it starts, run on the first CPU alone. */
static inline void stay_on_one_cpu(void)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(0, &cpus);
    check(sched_setaffinity(0, sizeof cpus, &cpus) == 0, "sched_setaffinity");
}

/* Gives the calling thread a priority; it has to be root's. */
static inline void take_priority(int number)
{
    struct sched_param param = { .sched_priority = 1 + number % 64 };
    check(pthread_setschedparam(pthread_self(), SCHED_FIFO, &param) == 0, "SCHED_FIFO");
}

/* Sleeps, so that lower ones run, and wakes while they are at something. */
static inline void step_aside(unsigned long number)
{
    struct timespec time = { .tv_nsec = 5000 + (long)(number * 7919 % 50000) };
    nanosleep(&time, NULL);
}

#endif
