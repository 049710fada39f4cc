/*
 * Children of a traced process: one of fork, that one's own child, and one of
 * posix_spawn (vfork and exec of this program again). Each waits for a byte of
 * the parent's before it allocates, so that a test can see that it is traced.
 *
 * Stages: ready, (byte: make the children) made, (byte: they allocate) holding,
 * (byte) all end. The last line holds each child's PID and account as `children`.
 */
#include "account.h"

#include <spawn.h>
#include <sys/wait.h>

#define CHILDREN 3
#define BYTES 1511

extern char **environ;

struct child {
    pid_t pid;
    struct account account;
    /* The child reads from go[0] and writes its PID to done[1]. */
    int go[2], done[2];
};

static struct child children[CHILDREN] = {
    {.account = {.name = "site_forked"}},
    {.account = {.name = "site_grandchild"}},
    {.account = {.name = "site_spawned"}},
};
static const size_t counts[CHILDREN] = {100, 200, 300};
static void *blocks[300];

SITE void *site_forked(void) { return malloc(BYTES); }
SITE void *site_grandchild(void) { return malloc(BYTES); }
SITE void *site_spawned(void) { return malloc(BYTES); }

static void tell(int done)
{
    pid_t pid = getpid();
    check(write(done, &pid, sizeof pid) == sizeof pid, "a child's pipe");
}

static pid_t hear(int done)
{
    pid_t pid;
    check(read(done, &pid, sizeof pid) == sizeof pid, "a child's pipe");
    return pid;
}

/* Says that it is there, waits, allocates, says so, and waits for the end. */
static void be_child(int go, int done, size_t count, void *(*site)(void))
{
    char byte;
    tell(done);
    check(read(go, &byte, 1) == 1, "a child's pipe");
    for (size_t i = 0; i < count; i++) {
        blocks[i] = site();
        check(blocks[i] != NULL, "malloc");
    }
    tell(done);
    /* The parent's byte, or its death. */
    check(read(go, &byte, 1) >= 0, "a child's pipe");
}

static void be_forked(void)
{
    int status;
    pid_t grandchild = fork();
    check(grandchild >= 0, "fork");
    if (grandchild == 0) {
        be_child(children[1].go[0], children[1].done[1], counts[1], site_grandchild);
        _exit(0);
    }
    be_child(children[0].go[0], children[0].done[1], counts[0], site_forked);
    check(waitpid(grandchild, &status, 0) == grandchild && status == 0, "the grandchild");
    _exit(0);
}

static void make_children(const char *self)
{
    char go[16], done[16];
    for (size_t i = 0; i < CHILDREN; i++)
        check(pipe(children[i].go) == 0 && pipe(children[i].done) == 0, "pipe");
    pid_t forked = fork();
    check(forked >= 0, "fork");
    if (forked == 0)
        be_forked();
    snprintf(go, sizeof go, "%d", children[2].go[0]);
    snprintf(done, sizeof done, "%d", children[2].done[1]);
    char *arguments[] = {(char *)self, go, done, NULL};
    pid_t spawned;
    check(posix_spawn(&spawned, "/proc/self/exe", NULL, NULL, arguments, environ) == 0, "spawn");
    for (size_t i = 0; i < CHILDREN; i++)
        children[i].pid = hear(children[i].done[0]);
}

int main(int argc, char **argv)
{
    int status;
    if (argc == 3) {
        be_child(atoi(argv[1]), atoi(argv[2]), counts[2], site_spawned);
        return 0;
    }
    stage("ready", NULL, 0);
    make_children(argv[0]);
    stage("made", NULL, 0);
    for (size_t i = 0; i < CHILDREN; i++) {
        check(write(children[i].go[1], "x", 1) == 1, "a child's pipe");
        hear(children[i].done[0]);
        children[i].account.allocated_count = counts[i];
        children[i].account.allocated_bytes = counts[i] * BYTES;
    }
    line_begin("holding");
    line_add(",\"children\":[");
    for (size_t i = 0; i < CHILDREN; i++) {
        line_add("%s{\"pid\":%d", i ? "," : "", (int)children[i].pid);
        line_add_accounts(&children[i].account, 1);
        line_add("}");
    }
    line_add("]");
    line_end();
    wait_for_byte();
    for (size_t i = 0; i < CHILDREN; i++)
        check(write(children[i].go[1], "x", 1) == 1, "a child's pipe");
    for (size_t i = 0; i < 2; i++)
        check(wait(&status) > 0 && status == 0, "a child failed");
    return 0;
}
