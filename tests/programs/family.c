/*
 * Processes that come and go. In each round ten children of fork free blocks
 * that they have inherited, leak blocks of their own and end at once; nobody
 * waits for a tracer. At the end a child of vfork executes this program again
 * as a leaf, which leaks blocks and stays.
 *
 * Stages: ready, (byte: ten children) round, ... as many rounds as the argument
 * says, (byte: leak, leaf) holding, (byte) all end. Each line of a round holds
 * its children's PIDs and accounts as `children`; the last one that of the leaf,
 * and the account of the process itself.
 */
#define _GNU_SOURCE
#include "account.h"

#include <sys/wait.h>

#define CHILDREN 10
#define INHERITED 30
#define INHERITED_BYTES 1531
#define OWN 50
#define OWN_BYTES 1543
#define LEAF 70
#define LEAF_BYTES 1549

static struct account accounts[] = {{.name = "site_inherited"}};
static void *inherited[INHERITED];
static void *own[LEAF];

SITE void *site_inherited(void) { return malloc(INHERITED_BYTES); }
SITE void *site_child(void) { return malloc(OWN_BYTES); }
SITE void *site_leaf(void) { return malloc(LEAF_BYTES); }

static void add_child(size_t index, pid_t pid, const char *site, uint64_t count, uint64_t bytes)
{
    struct account account = {.name = site};
    account.allocated_count = count;
    account.allocated_bytes = count * bytes;
    line_add("%s{\"pid\":%d", index ? "," : "", (int)pid);
    line_add_accounts(&account, 1);
    line_add("}");
}

/* The later ones leak more. */
static void be_child(size_t index)
{
    for (size_t i = 0; i < INHERITED; i++)
        free(inherited[i]);
    for (size_t i = 0; i < OWN - CHILDREN + index; i++) {
        own[i] = site_child();
        check(own[i] != NULL, "malloc");
    }
    _exit(0);
}

static void go_round(void)
{
    int status;
    line_begin("round");
    line_add(",\"children\":[");
    for (size_t i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0)
            be_child(i);
        check(waitpid(child, &status, 0) == child && status == 0, "a child failed");
        add_child(i, child, "site_child", OWN - CHILDREN + i, OWN_BYTES);
    }
    line_add("]");
    line_end();
}

static int be_leaf(int done, int end)
{
    char byte = 'x';
    for (size_t i = 0; i < LEAF; i++) {
        own[i] = site_leaf();
        check(own[i] != NULL, "malloc");
    }
    check(write(done, &byte, 1) == 1, "the leaf's pipe");
    /* The parent's byte, or its death. */
    check(read(end, &byte, 1) >= 0, "the leaf's pipe");
    return 0;
}

int main(int argc, char **argv)
{
    int done[2], end[2], status;
    char byte, first[16], second[16];
    if (argc == 3)
        return be_leaf(atoi(argv[1]), atoi(argv[2]));
    check(argc == 2, "one argument");
    stage("ready", NULL, 0);
    for (size_t i = 0; i < INHERITED; i++) {
        inherited[i] = site_inherited();
        check(inherited[i] != NULL, "malloc");
        account_allocated(&accounts[0], INHERITED_BYTES);
    }
    for (int i = 0; i < atoi(argv[1]); i++) {
        go_round();
        wait_for_byte();
    }

    check(pipe(done) == 0 && pipe(end) == 0, "pipe");
    snprintf(first, sizeof first, "%d", done[1]);
    snprintf(second, sizeof second, "%d", end[0]);
    char *arguments[] = {argv[0], first, second, NULL};
    pid_t leaf = vfork();
    if (leaf == 0) {
        execv(argv[0], arguments);
        _exit(EXIT_BROKEN);
    }
    check(leaf > 0 && read(done[0], &byte, 1) == 1, "the leaf");
    line_begin("holding");
    line_add_accounts(accounts, 1);
    line_add(",\"children\":[");
    add_child(0, leaf, "site_leaf", LEAF, LEAF_BYTES);
    line_add("]");
    line_end();
    wait_for_byte();
    check(write(end[1], "x", 1) == 1, "the leaf's pipe");
    check(waitpid(leaf, &status, 0) == leaf && status == 0, "the leaf failed");
    return 0;
}
