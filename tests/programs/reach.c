/*
 * Blocks that are lost, and blocks that are held in every way in which a program holds one. Each
 * class has a call site of its own, and the program says what is true of it: blocks that nothing
 * leads to (definite), that only those lead to (indirect), that only an address inside leads to
 * (possible), and that can be reached.
 *
 * The blocks of classes in `hidden` are held in forms that no scan can see: XOR-ed, compressed,
 * tagged above bit 47.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end.
 */
#include "account.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#ifndef NO_CONTEXT
#include <ucontext.h>
#endif

/* A word that is no address by itself, whatever the compiler thinks of it. */
static volatile uintptr_t mask = 0x5aa5a55a5aa5a55a;

static void *got(void *block, size_t bytes)
{
    check(block != NULL, "malloc");
    /* What the allocator left in it would lead to other blocks. */
    return memset(block, 0, bytes);
}

#ifdef NO_CONTEXT
#define COROUTINE(X)
#else
#define COROUTINE(X) X(coroutine, 0, 0, 0, 2)
#endif

#define CLASSES(X) \
    X(dropped, 10, 0, 0, 0) \
    X(list, 1, 9, 0, 0) \
    X(cycle, 1, 2, 0, 0) \
    X(itself, 1, 0, 0, 0) \
    X(before_free, 1, 0, 0, 0) \
    X(global, 0, 0, 0, 1) \
    X(chain, 0, 0, 0, 5) \
    X(local, 0, 0, 0, 1) \
    X(thread_local, 0, 0, 0, 1) \
    X(key, 0, 0, 0, 1) \
    X(frame, 0, 0, 0, 1) \
    X(thread_frame, 0, 0, 0, 1) \
    X(old_heap, 0, 0, 0, 3) \
    X(mapped, 0, 0, 0, 1) \
    X(memfd, 0, 0, 0, 1) \
    X(read_only, 0, 0, 0, 1) \
    X(no_access, 0, 0, 0, 1) \
    COROUTINE(X) \
    X(epoll, 0, 0, 0, 1) \
    X(timer, 0, 0, 0, 1) \
    X(interior, 0, 0, 1, 0) \
    X(behind_interior, 0, 0, 1, 0) \
    X(low_bit, 0, 0, 1, 0) \
    X(xored, 1, 0, 0, 0) \
    X(high_tag, 1, 0, 0, 0) \
    X(compressed, 1, 0, 0, 0) \
    X(filler, 0, 0, 0, 8000)

#define DECLARE(name, definite, indirect, possible, reachable) \
    SITE void *site_##name(size_t bytes) { return got(malloc(bytes), bytes); }
CLASSES(DECLARE)

/* Volatile: else nothing is stored, as nothing reads it. */
static void *volatile global, *volatile chain, *volatile interior, *volatile low_bit;
static __thread void *volatile thread_local;
static volatile uintptr_t xored, high_tag;
static volatile uint32_t compressed;
static void **volatile old_heap, **volatile mapped, **volatile memfd, **volatile read_only, **volatile no_access;
static pthread_key_t key;

static void *map(int descriptor)
{
    int flags = descriptor < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, descriptor, 0);
    check(page != MAP_FAILED, "mmap");
    return page;
}

/* What functions that have returned left on the stack would hold blocks. */
__attribute__((noinline)) static void scrub(void)
{
    volatile char stack[32768];
    for (size_t at = 0; at < sizeof stack; at++)
        stack[at] = 0;
}

void *fillers[4][2000];

/*
 * Caches of allocators (jemalloc's) keep addresses that they have given out, until others take their
 * place.
 */
__attribute__((noinline)) static void fill_caches(void)
{
    static const size_t sizes[] = {24, 40, 64, 100};
    for (int size = 0; size < 4; size++)
        for (int at = 0; at < 2000; at++)
            fillers[size][at] = site_filler(sizes[size]);
}

__attribute__((noinline)) static void lose(void)
{
    for (int at = 0; at < 10; at++)
        site_dropped(100);
    void *head = NULL;
    for (int at = 0; at < 10; at++) {
        void **next = site_list(40);
        next[1] = head;
        head = next;
    }
    void **cycle[3];
    for (int at = 0; at < 3; at++)
        cycle[at] = site_cycle(64);
    for (int at = 0; at < 3; at++)
        cycle[at][2] = cycle[(at + 1) % 3];
    void **itself = site_itself(64);
    itself[3] = itself;
    xored = (uintptr_t)site_xored(64) ^ mask;
    high_tag = (uintptr_t)site_high_tag(64) | (uintptr_t)0xab << 56;
    compressed = (uint32_t)((uintptr_t)site_compressed(64) >> 4);
}

/* A block that ends where a free chunk begins, to whose header glibc's lists point. */
__attribute__((noinline)) static void lose_before_free(void)
{
    site_before_free(24);
    char *chunk = malloc(5000);
    void *barrier = malloc(24);
    check(chunk != NULL && barrier != NULL, "malloc");
    free(chunk);
    free(barrier);
}

#ifndef NO_CONTEXT
static void *coroutine_stack;
static ucontext_t outside, inside;

static void in_coroutine(void)
{
    void *volatile held = site_coroutine(64);
    check(swapcontext(&inside, &outside) == 0, "swapcontext");
    check(held != NULL, "never");
}

__attribute__((noinline)) static void hold_in_coroutine(void)
{
    coroutine_stack = site_coroutine(65536);
    check(getcontext(&inside) == 0, "getcontext");
    inside.uc_stack.ss_sp = coroutine_stack;
    inside.uc_stack.ss_size = 65536;
    inside.uc_link = NULL;
    makecontext(&inside, in_coroutine, 0);
    check(swapcontext(&outside, &inside) == 0, "swapcontext");
}
#else
static void hold_in_coroutine(void) {}
#endif

__attribute__((noinline)) static void hold(void)
{
    global = site_global(64);
    for (int at = 0; at < 5; at++) {
        void **next = site_chain(64);
        next[2] = chain;
        chain = next;
    }
    thread_local = site_local(64);
    check(pthread_setspecific(key, site_key(64)) == 0, "pthread_setspecific");
    for (int at = 0; at < 3; at++)
        old_heap[at * 7] = site_old_heap(64);
    mapped[5] = site_mapped(64);
    memfd[6] = site_memfd(64);
    read_only[7] = site_read_only(64);
    check(mprotect(read_only, 4096, PROT_READ) == 0, "mprotect");
    no_access[8] = site_no_access(64);
    check(mprotect(no_access, 4096, PROT_NONE) == 0, "mprotect");

    hold_in_coroutine();
    int pipes[2];
    check(pipe(pipes) == 0, "pipe");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = site_epoll(64)};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    check(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event) == 0, "epoll");
    struct sigevent notify = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    notify.sigev_value.sival_ptr = site_timer(64);
    static timer_t timer;
    check(timer_create(CLOCK_MONOTONIC, &notify, &timer) == 0, "timer_create");

    void **outer = site_interior(64);
    *outer = site_behind_interior(64);
    interior = (char *)outer + 16;
    low_bit = (char *)site_low_bit(64) + 1;
}

static volatile int thread_is_ready;

__attribute__((noinline)) static void hold_in_thread(void)
{
    thread_local = site_thread_local(64);
    scrub();
}

static void *thread(void *argument)
{
    hold_in_thread();
    void *volatile held = site_thread_frame(64);
    __atomic_store_n(&thread_is_ready, 1, __ATOMIC_RELEASE);
    for (;;)
        pause();
    return held == NULL ? argument : NULL;
}

static const struct class {
    const char *name;
    int definite, indirect, possible, reachable;
} classes[] = {
#define NAME(name, definite, indirect, possible, reachable) \
    {"site_" #name, definite, indirect, possible, reachable},
    CLASSES(NAME)
};

int main(void)
{
    old_heap = malloc(200);
    check(old_heap != NULL && pthread_key_create(&key, NULL) == 0, "malloc");
    memset(old_heap, 0, 200);
    mapped = map(-1);
    read_only = map(-1);
    no_access = map(-1);
    int descriptor = memfd_create("reach", 0);
    check(descriptor >= 0 && ftruncate(descriptor, 4096) == 0, "memfd_create");
    memfd = map(descriptor);
    stage("ready", NULL, 0);

    lose();
    lose_before_free();
    hold();
    pthread_t other;
    check(pthread_create(&other, NULL, thread, NULL) == 0, "pthread_create");
    while (!__atomic_load_n(&thread_is_ready, __ATOMIC_ACQUIRE))
        usleep(1000);
    void *volatile held = site_frame(64);
    fill_caches();
    scrub();

    line_begin("holding");
    line_add(",\"classes\":[");
    for (size_t at = 0; at < sizeof classes / sizeof *classes; at++) {
        const struct class *of = &classes[at];
        line_add("%s{\"name\":\"%s\",\"definite\":%d,\"indirect\":%d,\"possible\":%d,\"reachable\":%d}",
                 at ? "," : "", of->name, of->definite, of->indirect, of->possible, of->reachable);
    }
    line_add("]");
    line_end();
    wait_for_byte();
    check(held != NULL, "never");
    _exit(0);
}
