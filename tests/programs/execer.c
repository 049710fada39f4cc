/*
 * Hard case: exec. The process allocates 100 blocks, replaces its image by this
 * program again, and allocates 50 others: the first hundred are gone with the
 * old image, under the same PID.
 *
 * Stages: ready, (byte: allocate) before, (byte: exec, allocate) after, (byte) end.
 */
#include "account.h"

#define BEFORE 100
#define BEFORE_BYTES 1237
#define AFTER 50
#define AFTER_BYTES 2477

static void *blocks[BEFORE];
static struct account accounts[] = {{.name = "site_before_exec"}, {.name = "site_after_exec"}};

SITE void *site_before_exec(void) { return malloc(BEFORE_BYTES); }
SITE void *site_after_exec(void) { return malloc(AFTER_BYTES); }

static void allocate(size_t count, void *(*call)(void), struct account *account, uint64_t bytes)
{
    for (size_t i = 0; i < count; i++) {
        blocks[i] = call();
        check(blocks[i] != NULL, "malloc");
        account_allocated(account, bytes);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "after") == 0) {
        allocate(AFTER, site_after_exec, &accounts[1], AFTER_BYTES);
        stage("after", accounts, 2);
        return 0;
    }
    char *arguments[] = {argv[0], "after", NULL};
    stage("ready", accounts, 2);
    allocate(BEFORE, site_before_exec, &accounts[0], BEFORE_BYTES);
    stage("before", accounts, 2);
    execv("/proc/self/exe", arguments);
    broken("execv");
}
