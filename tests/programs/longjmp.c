/*
 * Hard case: allocator calls that never return.
 *
 * First 100 calls of malloc are left at a known point: glibc asks the kernel for
 * a mapping of an odd length, a seccomp filter turns this mmap into SIGSYS, and
 * the handler jumps out. Nothing was allocated, and nothing of the heap is
 * half-changed, as glibc calls mmap before it touches its own records.
 *
 * Then SIGALRM jumps out of a malloc/free loop 200 times at random points: before
 * the call, after it, at the first instructions of malloc and free, in the kernel's
 * return trampoline; not in the midst of the allocator, which may be left
 * inconsistent.
 *
 * Then 250 blocks are leaked: their account must be exact, whatever is left of
 * the calls that never returned.
 *
 * Stages: ready, (byte: jump, leak) holding, (byte) end without freeing.
 */
#define _GNU_SOURCE
#include "account.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

#define NEVER 100
#define NEVER_BYTES ((size_t)0x1234567)
/* glibc adds a header and rounds up to pages. */
#define NEVER_MAPPED 0x1235000
#define JUMPS 200
#define LEAKS 250
#define LEAK_BYTES 1493
/* malloc and free only save registers and look at their arguments in these bytes. */
#define HARMLESS_BYTES 8

static struct account accounts[] = {
    {.name = "site_never_returns"},
    {.name = "site_after_jumps"},
};
static sigjmp_buf landing;
static volatile sig_atomic_t armed;
static void *leaks[LEAKS];
static uintptr_t libc_start, libc_end;

SITE void *site_never_returns(void) { return malloc(NEVER_BYTES); }
SITE void *site_after_jumps(void) { return malloc(LEAK_BYTES); }

SITE void site_loop(void)
{
    for (;;) {
        void *block = malloc(67);
        __asm__ volatile("" : "+r"(block) : : "memory");
        free(block);
    }
}

static void on_sigsys(int number)
{
    (void)number;
    siglongjmp(landing, 1);
}

static int find_libc(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        uintptr_t start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        uintptr_t end = start + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_LOAD && start <= (uintptr_t)malloc
            && (uintptr_t)malloc < end) {
            libc_start = start;
            libc_end = end;
            return 1;
        }
    }
    return 0;
}

static int is_harmless(uintptr_t address)
{
    return address < libc_start || address >= libc_end
        || address - (uintptr_t)malloc < HARMLESS_BYTES
        || address - (uintptr_t)free < HARMLESS_BYTES;
}

static void on_alarm(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)info;
    const ucontext_t *interrupted = context;
    if (armed && is_harmless((uintptr_t)interrupted->uc_mcontext.gregs[REG_RIP]))
        siglongjmp(landing, 1);
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

static void jump_out_of_mmap(void)
{
    trap_odd_mapping();
    for (volatile int i = 0; i < NEVER; i++)
        if (sigsetjmp(landing, 1) == 0) {
            site_never_returns();
            broken("malloc returned");
        }
}

static void jump_at_random(void)
{
    struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO};
    struct itimerval timer = {{0, 731}, {0, 731}};
    volatile int jumps = 0;
    check(dl_iterate_phdr(find_libc, NULL) == 1, "no libc");
    check(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
    check(setitimer(ITIMER_REAL, &timer, NULL) == 0, "setitimer");
    if (sigsetjmp(landing, 1) != 0) {
        armed = 0;
        jumps = jumps + 1;
    }
    if (jumps < JUMPS) {
        armed = 1;
        site_loop();
    }
    timer = (struct itimerval){{0, 0}, {0, 0}};
    check(setitimer(ITIMER_REAL, &timer, NULL) == 0, "setitimer");
}

int main(void)
{
    stage("ready", accounts, 2);
    jump_out_of_mmap();
    jump_at_random();
    for (size_t i = 0; i < LEAKS; i++) {
        leaks[i] = site_after_jumps();
        check(leaks[i] != NULL, "malloc");
        account_allocated(&accounts[1], LEAK_BYTES);
    }
    stage("holding", accounts, 2);
    return 0;
}
