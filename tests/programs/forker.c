/*
 * Hard case: fork. The child frees its copies of the parent's blocks and leaks
 * 300 blocks of its own; the parent's blocks are still the parent's.
 *
 * Stages: ready, (byte: allocate, fork, wait until the child is done) holding,
 * (byte) the child ends, then the parent. The line holds the parent's account,
 * and as `child` the child's PID and account.
 */
#include "account.h"

#include <sys/wait.h>

#define INHERITED 200
#define INHERITED_BYTES 1481
#define OWN 300
#define OWN_BYTES 1483

static struct account accounts[] = {{.name = "site_inherited"}, {.name = "site_child"}};
static struct account child_accounts[] = {{.name = "site_inherited"}, {.name = "site_child"}};
static void *inherited[INHERITED];
static void *own[OWN];

SITE void *site_inherited(void) { return malloc(INHERITED_BYTES); }
SITE void *site_child(void) { return malloc(OWN_BYTES); }

static void run_child(int done, int end)
{
    char byte = 'x';
    for (size_t i = 0; i < INHERITED; i++)
        free(inherited[i]);
    for (size_t i = 0; i < OWN; i++) {
        own[i] = site_child();
        check(own[i] != NULL, "malloc");
    }
    check(write(done, &byte, 1) == 1, "the child's pipe");
    /* The parent's byte, or its death. */
    check(read(end, &byte, 1) >= 0, "the child's pipe");
    _exit(0);
}

int main(void)
{
    int done[2], end[2], status;
    char byte = 'x';
    stage("ready", accounts, 2);
    for (size_t i = 0; i < INHERITED; i++) {
        inherited[i] = site_inherited();
        check(inherited[i] != NULL, "malloc");
        account_allocated(&accounts[0], INHERITED_BYTES);
    }
    check(pipe(done) == 0 && pipe(end) == 0, "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        close(end[1]);
        run_child(done[1], end[0]);
    }
    check(read(done[0], &byte, 1) == 1, "the child's pipe");
    child_accounts[1].allocated_count = OWN;
    child_accounts[1].allocated_bytes = (uint64_t)OWN * OWN_BYTES;

    line_begin("holding");
    line_add_accounts(accounts, 2);
    line_add(",\"child\":{\"pid\":%d", (int)child);
    line_add_accounts(child_accounts, 2);
    line_add("}");
    line_end();
    wait_for_byte();

    check(write(end[1], &byte, 1) == 1, "the child's pipe");
    check(waitpid(child, &status, 0) == child && status == 0, "the child failed");
    return 0;
}
