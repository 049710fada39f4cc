/*
 * Hard case: kernel memory held for a process: 500 pipes, 500 eventfds, 500
 * timerfds, nothing else between the stages.
 *
 * Stages: ready, (byte: create) holding, (byte: close) closed, (byte) end.
 */
#define _GNU_SOURCE
#include "account.h"

#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

#define OBJECTS 500
#define DESCRIPTORS (4 * OBJECTS)
#define HIGHEST 3000

static int descriptors[DESCRIPTORS];
static int used;

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
    descriptors[used++] = descriptor;
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

SITE void create_pipes(void)
{
    for (int i = 0; i < OBJECTS; i++) {
        int ends[2];
        check(pipe(ends) == 0, "pipe");
        keep(ends[0], "pipe");
        keep(ends[1], "pipe");
    }
}

SITE void create_eventfds(void)
{
    for (int i = 0; i < OBJECTS; i++)
        keep(eventfd(0, 0), "eventfd");
}

SITE void create_timerfds(void)
{
    for (int i = 0; i < OBJECTS; i++)
        keep(timerfd_create(CLOCK_MONOTONIC, 0), "timerfd_create");
}

int main(void)
{
    grow_descriptor_table();
    held("ready", 0);
    create_pipes();
    create_eventfds();
    create_timerfds();
    held("holding", OBJECTS);
    while (used > 0)
        check(close(descriptors[--used]) == 0, "close");
    held("closed", 0);
    return 0;
}
