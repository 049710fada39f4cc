/*
 * A process that is held for a time, and says afterwards whether it noticed.
 *
 * calls      twelve threads, each in one call that blocks; how often each was broken off
 * compute    threads that check their own arithmetic, in general and vector registers
 * signals    counts the real-time signals that it gets, in two threads
 * churn      threads that come and go all the time
 * many N     N threads that wait
 * leaderless the first thread has ended, another lives
 * registers  an address in r13 alone, one in xmm9 alone
 * closer     closes a pipe, and says how long its reader waited for the end
 * areas      memory that a fork does not have, or has as zeros
 * filter     under a seccomp filter that allows everything
 *
 * Stages: ready, (byte) done, (byte) end.
 */
#include "account.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

static atomic_int stop, handled, begun;

static void start(pthread_t *thread, void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    check(pthread_create(thread, &attributes, function, argument) == 0, "pthread_create");
    pthread_attr_destroy(&attributes);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void nap(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time) < 0 && errno == EINTR)
        ;
}

/* ---- calls ---- */

enum { EPOLL, SIGWAIT, SEMOP, POLL, SLEEP, READ, RECV, SEM_WAIT, MUTEX, SELECT, PAUSE, TIMED, CALLS };
static const char *const call_names[] = {"epoll_wait", "sigwaitinfo", "semop", "poll",
                                         "nanosleep",  "read",        "recv",  "sem_wait",
                                         "mutex",      "select",      "pause", "sem_timedwait"};
static int epoll_fd, event_fd, semaphores, poll_pipe[2], read_pipe[2], select_pipe[2], sockets[2];
static sem_t plain, timed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_int broken_off[CALLS], tids[CALLS];
static double slept;

static void on_signal(int number)
{
    (void)number;
    handled++;
}

static long call(int which)
{
    char byte;
    struct epoll_event event;
    struct sembuf take = {0, -1, 0};
    struct pollfd polled = {poll_pipe[0], POLLIN, 0};
    struct timespec time;
    sigset_t set;
    fd_set fds;
    switch (which) {
    case EPOLL:
        return epoll_wait(epoll_fd, &event, 1, -1);
    case SIGWAIT:
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        return sigwaitinfo(&set, NULL);
    case SEMOP:
        return semop(semaphores, &take, 1);
    case POLL:
        return poll(&polled, 1, 60000);
    case SLEEP: {
        double begin = now();
        time = (struct timespec){1, 500000000};
        long result = nanosleep(&time, NULL);
        slept = now() - begin;
        return result;
    }
    case READ:
        return read(read_pipe[0], &byte, 1);
    case RECV:
        return recv(sockets[0], &byte, 1, 0);
    case SEM_WAIT:
        return sem_wait(&plain);
    case MUTEX:
        errno = pthread_mutex_lock(&mutex);
        pthread_mutex_unlock(&mutex);
        return errno ? -1 : 0;
    case SELECT:
        FD_ZERO(&fds);
        FD_SET(select_pipe[0], &fds);
        return select(select_pipe[0] + 1, &fds, NULL, NULL, NULL);
    case PAUSE: {
        /* A pause that returns without a handler was broken off. */
        int before = handled;
        pause();
        errno = EINTR;
        return handled > before ? 0 : -1;
    }
    default:
        clock_gettime(CLOCK_REALTIME, &time);
        time.tv_sec += 60;
        return sem_timedwait(&timed, &time);
    }
}

static void *caller(void *argument)
{
    int which = (int)(intptr_t)argument;
    tids[which] = (int)syscall(SYS_gettid);
    begun++;
    while (call(which) < 0) {
        check(errno == EINTR, call_names[which]);
        broken_off[which]++;
    }
    return NULL;
}

static int is_asleep(int tid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
    FILE *file = fopen(path, "r");
    check(file != NULL && fgets(text, sizeof text, file) != NULL, path);
    fclose(file);
    return strrchr(text, ')')[2] == 'S';
}

static void calls(void)
{
    pthread_t threads[CALLS];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGUSR1, on_signal);
    epoll_fd = epoll_create1(0);
    event_fd = eventfd(0, 0);
    struct epoll_event event = {.events = EPOLLIN};
    check(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, event_fd, &event) == 0, "epoll_ctl");
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    check(semaphores >= 0 && pipe(poll_pipe) == 0 && pipe(read_pipe) == 0 &&
              pipe(select_pipe) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0,
          "setup");
    sem_init(&plain, 0, 0);
    sem_init(&timed, 0, 0);
    pthread_mutex_lock(&mutex);
    for (intptr_t i = 0; i < CALLS; i++)
        start(&threads[i], caller, (void *)i);
    for (int i = 0; i < CALLS; i++)
        while (begun < CALLS || !is_asleep(tids[i]))
            nap(1);
    line_begin("ready");
    line_end();
    wait_for_byte();
    uint64_t one = 1;
    struct sembuf give = {0, 1, 0};
    check(write(event_fd, &one, 8) == 8 && semop(semaphores, &give, 1) == 0 &&
              write(poll_pipe[1], "x", 1) == 1 && write(read_pipe[1], "x", 1) == 1 &&
              write(select_pipe[1], "x", 1) == 1 && send(sockets[1], "x", 1, 0) == 1,
          "release");
    pthread_kill(threads[SIGWAIT], SIGUSR2);
    sem_post(&plain);
    sem_post(&timed);
    pthread_mutex_unlock(&mutex);
    pthread_kill(threads[PAUSE], SIGUSR1);
    for (int i = 0; i < CALLS; i++)
        pthread_join(threads[i], NULL);
    semctl(semaphores, 0, IPC_RMID);
    line_begin("done");
    line_add(",\"slept_ms\":%d,\"handled\":%d,\"broken_off\":{", (int)(slept * 1000), handled);
    for (int i = 0; i < CALLS; i++)
        line_add("%s\"%s\":%d", i ? "," : "", call_names[i], broken_off[i]);
    line_add("}");
}

/* ---- compute ---- */

static atomic_ulong rounds, wrong;

__attribute__((noipa)) static uint64_t mix(uint64_t seed)
{
    uint64_t a = seed, b = seed + 1, c = seed + 2, d = seed + 3, e = seed + 4, f = seed + 5;
    double x = (double)(seed % 1000), y = 1.5, z = 0.25;
    for (int i = 0; i < 2000; i++) {
        a = a * 6364136223846793005u + b;
        b ^= a >> 7;
        c += b * 3;
        d = (d << 5 | d >> 59) ^ c;
        e -= d;
        f = f * 31 + e;
        x = x * 0.5 + y;
        y = y + z * 0.125;
        z = 1.0 / (1.0 + x);
    }
    return a ^ b ^ c ^ d ^ e ^ f ^ (uint64_t)(x * 1e6) ^ (uint64_t)(y * 1e6) ^
           (uint64_t)(z * 1e6);
}

static void *computer(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument, expected = mix(seed);
    begun++;
    while (!stop) {
        wrong += mix(seed) != expected;
        rounds++;
        if (rounds % 64 == 0)
            check(getppid() > 0, "getppid");
    }
    return NULL;
}

static void compute(void)
{
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++)
        start(&threads[i], computer, (void *)(i + 7));
    while (begun < 2)
        nap(1);
    line_begin("ready");
    line_end();
    wait_for_byte();
    unsigned long before = rounds;
    while (rounds < before + 100)
        nap(1);
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    line_begin("done");
    line_add(",\"wrong\":%lu,\"rounds\":%lu", wrong, rounds);
}

/* ---- signals ---- */

static void signals(void)
{
    pthread_t threads[2];
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGRTMIN + 3, &action, NULL);
    for (uintptr_t i = 0; i < 2; i++)
        start(&threads[i], computer, (void *)(i + 7));
    while (begun < 2)
        nap(1);
    line_begin("ready");
    line_add(",\"signal\":%d", SIGRTMIN + 3);
    line_end();
    wait_for_byte();
    /* What is still queued comes before this returns from the kernel. */
    nap(200);
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    line_begin("done");
    line_add(",\"handled\":%d,\"wrong\":%lu", handled, wrong);
}

/* ---- churn, many, leaderless ---- */

static void *short_lived(void *argument)
{
    return (void *)(uintptr_t)mix((uint64_t)(uintptr_t)argument);
}

static void *breeder(void *argument)
{
    void *expected = short_lived((void *)9);
    (void)argument;
    begun++;
    while (!stop) {
        pthread_t threads[4];
        void *result;
        for (int i = 0; i < 4; i++)
            start(&threads[i], short_lived, (void *)9);
        for (int i = 0; i < 4; i++) {
            pthread_join(threads[i], &result);
            wrong += result != expected;
            rounds++;
        }
    }
    return NULL;
}

static void churn(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        start(&threads[i], breeder, NULL);
    while (begun < 4)
        nap(1);
    line_begin("ready");
    line_end();
    wait_for_byte();
    stop = 1;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    line_begin("done");
    line_add(",\"wrong\":%lu,\"rounds\":%lu", wrong, rounds);
}

static void *waiter(void *argument)
{
    (void)argument;
    begun++;
    sem_wait(&plain);
    return NULL;
}

static void many(int count)
{
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    sem_init(&plain, 0, 0);
    for (int i = 0; i < count; i++)
        start(&threads[i], waiter, NULL);
    while (begun < count)
        nap(1);
    line_begin("ready");
    line_end();
    wait_for_byte();
    for (int i = 0; i < count; i++)
        sem_post(&plain);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    line_begin("done");
}

static void *survivor(void *argument)
{
    pthread_t first = *(pthread_t *)argument;
    pthread_join(first, NULL);
    line_begin("ready");
    line_end();
    wait_for_byte();
    line_begin("done");
    line_end();
    wait_for_byte();
    exit(0);
}

/* ---- registers ---- */

static uintptr_t in_general, in_vector;

/* Neither function may leave its address in memory or in another register. */
static void *hold_general(void *argument)
{
    (void)argument;
    __asm__ volatile("mov %[address], %%r13\n\t"
                     "movq $0, %[address]\n\t"
                     "lock incl %[begun]\n"
                     "1: pause\n\t"
                     "cmpl $0, %[stop]\n\t"
                     "je 1b\n\t"
                     "mov %%r13, %[address]\n\t"
                     "xor %%r13d, %%r13d"
                     : [address] "+m"(in_general), [begun] "+m"(begun)
                     : [stop] "m"(stop)
                     : "r13", "cc", "memory");
    return NULL;
}

static void *hold_vector(void *argument)
{
    (void)argument;
    __asm__ volatile("movq %[address], %%xmm9\n\t"
                     "movq $0, %[address]\n\t"
                     "lock incl %[begun]\n"
                     "1: pause\n\t"
                     "cmpl $0, %[stop]\n\t"
                     "je 1b\n\t"
                     "movq %%xmm9, %[address]"
                     : [address] "+m"(in_vector), [begun] "+m"(begun)
                     : [stop] "m"(stop)
                     : "xmm9", "cc", "memory");
    return NULL;
}

static void registers(void)
{
    pthread_t threads[2];
    uintptr_t general = in_general = 0x7a5a11110000, vector = in_vector = 0x7a5a22220000;
    start(&threads[0], hold_general, NULL);
    start(&threads[1], hold_vector, NULL);
    while (begun < 2)
        nap(1);
    line_begin("ready");
    line_add(",\"general\":%lu,\"vector\":%lu", general, vector);
    line_end();
    wait_for_byte();
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    line_begin("done");
    line_add(",\"wrong\":%d", (in_general != general) + (in_vector != vector));
}

/* ---- closer, areas, filter ---- */

static void closer(void)
{
    char byte;
    check(pipe(read_pipe) == 0, "pipe");
    line_begin("ready");
    line_end();
    wait_for_byte();
    double begin = now();
    close(read_pipe[1]);
    check(read(read_pipe[0], &byte, 1) == 0, "end of the pipe");
    line_begin("done");
    line_add(",\"waited_ms\":%d", (int)((now() - begin) * 1000));
}

static void areas(void)
{
    size_t page = 4096;
    char *base = mmap(NULL, 5 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    check(base != MAP_FAILED && shared != MAP_FAILED, "mmap");
    memset(base, 'a', 5 * page);
    memset(shared, 's', page);
    char *missing = base + page, *wiped = base + 3 * page;
    check(madvise(missing, page, MADV_DONTFORK) == 0, "MADV_DONTFORK");
    check(madvise(wiped, page, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
    line_begin("ready");
    line_add(",\"missing\":%lu,\"wiped\":%lu,\"plain\":%lu,\"shared\":%lu", (uintptr_t)missing,
             (uintptr_t)wiped, (uintptr_t)base, (uintptr_t)shared);
    line_end();
    wait_for_byte();
    /* Not to be seen in a copy. */
    memset(base, 'b', page);
    line_begin("done");
}

static void filter(void)
{
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, allow};
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
              prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0,
          "seccomp");
    line_begin("ready");
    line_end();
    wait_for_byte();
    line_begin("done");
}

int main(int count, char **arguments)
{
    const char *mode = count > 1 ? arguments[1] : "";
    if (strcmp(mode, "calls") == 0)
        calls();
    else if (strcmp(mode, "compute") == 0)
        compute();
    else if (strcmp(mode, "signals") == 0)
        signals();
    else if (strcmp(mode, "churn") == 0)
        churn();
    else if (strcmp(mode, "many") == 0 && count > 2)
        many(atoi(arguments[2]));
    else if (strcmp(mode, "registers") == 0)
        registers();
    else if (strcmp(mode, "closer") == 0)
        closer();
    else if (strcmp(mode, "areas") == 0)
        areas();
    else if (strcmp(mode, "filter") == 0)
        filter();
    else if (strcmp(mode, "leaderless") == 0) {
        static pthread_t self;
        pthread_t thread;
        self = pthread_self();
        start(&thread, survivor, &self);
        pthread_exit(NULL);
    } else
        broken("which mode?");
    line_end();
    wait_for_byte();
    return 0;
}
