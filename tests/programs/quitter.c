/*
 * Hard case: threads that end inside the allocator. glibc asks the kernel for a
 * mapping of an odd length, a seccomp filter turns this mmap into SIGSYS, and the
 * handler ends the thread there and then. Half of them are in malloc, which then
 * has allocated nothing; the others in realloc, whose old block stays as it is.
 *
 * The old blocks lie in the arenas of their threads, which stay locked for ever:
 * the main thread uses none of them.
 *
 * With the argument `stay` the handler waits instead: the process ends with all
 * threads in the allocator.
 *
 * Stages: ready, (byte: all threads) holding, (byte) end without freeing.
 */
#define _GNU_SOURCE
#include "account.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define THREADS 4
#define NEVER_BYTES ((size_t)0x1234567)
/* glibc adds a header and rounds up to pages. */
#define NEVER_MAPPED 0x1235000
#define OLD_BYTES 1559
#define AFTER 90
#define AFTER_BYTES 1567

static struct account accounts[] = {
    {.name = "site_never_returns"},
    {.name = "site_never_resized"},
    {.name = "site_old"},
    {.name = "site_after"},
};
static void *blocks[AFTER];

SITE void *site_never_returns(void) { return malloc(NEVER_BYTES); }
SITE void *site_never_resized(void *old) { return realloc(old, NEVER_BYTES); }
SITE void *site_old(void) { return malloc(OLD_BYTES); }
SITE void *site_after(void) { return malloc(AFTER_BYTES); }

static int stays;
static sem_t stopped;

static void on_sigsys(int number)
{
    (void)number;
    while (stays) {
        sem_post(&stopped);
        pause();
    }
    syscall(SYS_exit, 0);
}

static void trap_odd_mapping(void)
{
    struct sock_filter instructions[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NEVER_MAPPED, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
    };
    struct sock_fprog program = {sizeof instructions / sizeof instructions[0], instructions};
    check(signal(SIGSYS, on_sigsys) != SIG_ERR, "signal");
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
    check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "seccomp");
}

static void *end_in_malloc(void *unused)
{
    (void)unused;
    site_never_returns();
    broken("malloc returned");
    return NULL;
}

static void *end_in_realloc(void *unused)
{
    (void)unused;
    void *old = site_old();
    check(old != NULL, "malloc");
    account_allocated(&accounts[2], OLD_BYTES);
    site_never_resized(old);
    broken("realloc returned");
    return NULL;
}

static void run_to_its_end(void *(*way)(void *))
{
    pthread_t thread;
    check(pthread_create(&thread, NULL, way, NULL) == 0, "pthread_create");
    check((stays ? sem_wait(&stopped) : pthread_join(thread, NULL)) == 0, "a thread");
}

int main(int argc, char **argv)
{
    stays = argc == 2 && strcmp(argv[1], "stay") == 0;
    check(sem_init(&stopped, 0, 0) == 0, "sem_init");
    stage("ready", accounts, 4);
    trap_odd_mapping();
    for (int i = 0; i < THREADS; i++) {
        run_to_its_end(end_in_malloc);
        run_to_its_end(end_in_realloc);
    }
    for (size_t i = 0; i < AFTER; i++) {
        blocks[i] = site_after();
        check(blocks[i] != NULL, "malloc");
        account_allocated(&accounts[3], AFTER_BYTES);
    }
    stage("holding", accounts, 4);
    return 0;
}
