/*
 * Hard case: a process ID that is used again. A child leaks and ends; the next
 * child is given its number (clone3 with set_tid) and, as its heap begins as
 * the same copy of the parent's, its addresses.
 *
 * Stages: ready, (byte: both children) holding, (byte) end. The line holds each
 * child's PID and account as `children`.
 */
#define _GNU_SOURCE
#include "account.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define FIRST 100
#define SECOND 50
#define BYTES 1567

static struct account first = {.name = "site_first"}, second = {.name = "site_second"};
static void *blocks[FIRST];

SITE void *site_first(void) { return malloc(BYTES); }
SITE void *site_second(void) { return malloc(BYTES); }

static void leak(size_t count, void *(*site)(void))
{
    for (size_t i = 0; i < count; i++) {
        blocks[i] = site();
        check(blocks[i] != NULL, "malloc");
    }
}

static pid_t fork_as(pid_t pid)
{
    struct clone_args arguments = {
        .exit_signal = SIGCHLD,
        .set_tid = (uint64_t)&pid,
        .set_tid_size = 1,
    };
    return (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
}

int main(void)
{
    int done[2], end[2], status;
    char byte = 'x';
    stage("ready", NULL, 0);
    check(pipe(done) == 0 && pipe(end) == 0, "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        leak(FIRST, site_first);
        _exit(0);
    }
    check(waitpid(child, &status, 0) == child && status == 0, "the first child failed");
    pid_t again = fork_as(child);
    check(again >= 0, "clone3 with set_tid");
    if (again == 0) {
        close(end[1]);
        leak(SECOND, site_second);
        check(write(done[1], &byte, 1) == 1, "the child's pipe");
        /* The parent's byte, or its death. */
        check(read(end[0], &byte, 1) >= 0, "the child's pipe");
        _exit(0);
    }
    check(again == child, "the second child has another number");
    check(read(done[0], &byte, 1) == 1, "the child's pipe");
    first.allocated_count = FIRST;
    first.allocated_bytes = (uint64_t)FIRST * BYTES;
    second.allocated_count = SECOND;
    second.allocated_bytes = (uint64_t)SECOND * BYTES;

    line_begin("holding");
    line_add(",\"children\":[{\"pid\":%d", (int)child);
    line_add_accounts(&first, 1);
    line_add("},{\"pid\":%d", (int)again);
    line_add_accounts(&second, 1);
    line_add("}]");
    line_end();
    wait_for_byte();

    check(write(end[1], &byte, 1) == 1, "the child's pipe");
    check(waitpid(again, &status, 0) == again && status == 0, "the second child failed");
    return 0;
}
