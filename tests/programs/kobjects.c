/*
 * Hard case: kernel memory held for a process: 500 pipes, 500 eventfds, 500
 * timerfds, nothing else between the stages. With an argument they are made by
 * fifteen threads that preempt one another on one CPU.
 *
 * Stages: ready, (byte: create) holding, (byte: close) closed, (byte) end.
 */
#define _GNU_SOURCE
#include "onecpu.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

#define OBJECTS 500
#define DESCRIPTORS (4 * OBJECTS)
#define HIGHEST 3000

static int descriptors[DESCRIPTORS];
static int used;
static int is_one_cpu;

static void held(const char *name, int objects)
{
    line_begin(name);
    line_add(",\"pipes\":%d,\"eventfds\":%d,\"timerfds\":%d", objects, objects, objects);
    line_end();
    wait_for_byte();
}

static void keep(int descriptor, const char *what)
{
    check(descriptor >= 0, what);
    descriptors[__atomic_fetch_add(&used, 1, __ATOMIC_RELAXED)] = descriptor;
    if (is_one_cpu)
        step_aside((unsigned long)descriptor);
}

/* The descriptor table grows before the first stage, not under the calls that are counted. */
static void grow_descriptor_table(void)
{
    struct rlimit limit;
    check(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    if (limit.rlim_cur <= HIGHEST) {
        limit.rlim_cur = HIGHEST + 1;
        if (limit.rlim_max < limit.rlim_cur)
            limit.rlim_max = limit.rlim_cur;
        check(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
    }
    check(dup2(STDERR_FILENO, HIGHEST) == HIGHEST, "dup2");
    check(close(HIGHEST) == 0, "close");
}

SITE void create_pipes(int count)
{
    for (int i = 0; i < count; i++) {
        int ends[2];
        check(pipe(ends) == 0, "pipe");
        keep(ends[0], "pipe");
        keep(ends[1], "pipe");
    }
}

SITE void create_eventfds(int count)
{
    for (int i = 0; i < count; i++)
        keep(eventfd(0, 0), "eventfd");
}

SITE void create_timerfds(int count)
{
    for (int i = 0; i < count; i++)
        keep(timerfd_create(CLOCK_MONOTONIC, 0), "timerfd_create");
}

typedef void create(int count);
static create *const kinds[] = {create_pipes, create_eventfds, create_timerfds};

#define KINDS 3
#define THREADS (5 * KINDS)

static void *run(void *argument)
{
    unsigned long n = (unsigned long)argument;
    /*
     * Two priorities, so that one thread preempts another and is itself preempted by none: where three
     * are at it the kernel refuses events to both programs of a tracepoint, and says how many.
     */
    take_priority((int)n % 2);
    kinds[n % KINDS](OBJECTS * KINDS / THREADS);
    return NULL;
}

static void create_on_one_cpu(void)
{
    pthread_t threads[THREADS];
    for (unsigned long n = 0; n < THREADS; n++)
        check(pthread_create(&threads[n], NULL, run, (void *)n) == 0, "pthread_create");
    for (unsigned long n = 0; n < THREADS; n++)
        check(pthread_join(threads[n], NULL) == 0, "pthread_join");
}

int main(int argc, char **argv)
{
    (void)argv;
    is_one_cpu = argc > 1;
    grow_descriptor_table();
    if (is_one_cpu)
        stay_on_one_cpu();
    held("ready", 0);
    if (is_one_cpu)
        create_on_one_cpu();
    else
        for (int kind = 0; kind < KINDS; kind++)
            kinds[kind](OBJECTS);
    held("holding", OBJECTS);
    while (used > 0)
        check(close(descriptors[--used]) == 0, "close");
    held("closed", 0);
    return 0;
}
