/*
 * C code without frame pointers whose stacks are hard to unwind.
 *
 * Arguments: a shared library that is open from the start, and one that the
 * round opens. Stages: see unwind.h; each round has a stage "opened" of its own,
 * once the plugin has been called a first time.
 */
#define _GNU_SOURCE
#include "unwind.h"

#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

typedef void calls_back(void (*)(int), int);
typedef void *allocates(unsigned long);

static calls_back *library_calls_back;
static allocates *library_allocates;
static const char *plugin;

/* A call that comes back: no tail call. */
#define NO_TAIL __asm__ volatile("" : : : "memory")

/* Frames of all kinds, one within the other. */
SITE void leaf(unsigned long bytes)
{
    LEAK(bytes);
}

SITE void with_alloca(unsigned long bytes, unsigned amount)
{
    char *room = alloca(amount);
    memset(room, 1, amount);
    leaf(bytes);
    __asm__ volatile("" : : "r"(room) : "memory");
}

SITE void aligned_64(unsigned long bytes)
{
    _Alignas(64) char room[200];
    memset(room, 1, sizeof room);
    __asm__ volatile("" : : "r"(room) : "memory");
    with_alloca(bytes, 700);
    __asm__ volatile("" : : "r"(room) : "memory");
}

SITE void aligned_32_with_alloca(unsigned long bytes, unsigned amount)
{
    _Alignas(32) char room[100];
    char *more = alloca(amount);
    memset(room, 1, sizeof room);
    memset(more, 1, amount);
    __asm__ volatile("" : : "r"(room), "r"(more) : "memory");
    aligned_64(bytes);
    __asm__ volatile("" : : "r"(room), "r"(more) : "memory");
}

SITE void big_frame(unsigned long bytes)
{
    char room[9000];
    memset(room, 1, sizeof room);
    __asm__ volatile("" : : "r"(room) : "memory");
    aligned_32_with_alloca(bytes, 333);
    __asm__ volatile("" : : "r"(room) : "memory");
}

/* Every register that is kept across calls is spilled. */
SITE long spilled(unsigned long bytes, long a, long b, long c, long d, long e)
{
    long f = a * b, g = b * c, h = c * d, i = d * e;
    big_frame(bytes);
    NO_TAIL;
    return a + b + c + d + e + f + g + h + i;
}

/* The frame pointer is a register like any other. */
SITE long frame_pointer_clobbered(unsigned long bytes)
{
    long result = 1;
    __asm__ volatile("" : : : "rbx", "rbp", "r12", "r13", "r14", "r15");
    result += spilled(bytes, 1, 2, 3, 4, 5);
    __asm__ volatile("" : "+r"(result) : : "rbx", "rbp", "r12", "r13", "r14", "r15");
    return result;
}

/* Arguments on the stack move it between calls. */
SITE int many_arguments(int a, int b, int c, int d, int e, int f, int g, int h, unsigned long bytes)
{
    leaf(bytes);
    NO_TAIL;
    return a + b + c + d + e + f + g + h;
}

SITE int stack_arguments(unsigned long bytes)
{
    int sum = many_arguments(1, 2, 3, 4, 5, 6, 7, 8, bytes);
    NO_TAIL;
    return sum;
}

SITE void recurse(unsigned long bytes, unsigned depth)
{
    if (depth > 1)
        recurse(bytes, depth - 1);
    else
        leaf(bytes);
    NO_TAIL;
}

static unsigned compared;

static int compare(const void *a, const void *b)
{
    if (compared++ == 5)
        LEAK(21001);
    return *(const int *)a - *(const int *)b;
}

SITE void sort(void)
{
    int numbers[16];
    for (int i = 0; i < 16; i++)
        numbers[i] = i * 7 % 16;
    compared = 0;
    qsort(numbers, 16, sizeof numbers[0], compare);
    __asm__ volatile("" : : "r"(numbers) : "memory");
}

static void callback(int round)
{
    if (round == 2)
        aligned_64(21003);
    NO_TAIL;
}

SITE void through_library(void)
{
    library_calls_back(callback, 4);
    library_allocates(21005);
    NO_TAIL;
}

static void *thread_start(void *argument)
{
    LEAK(21007);
    recurse(21009, 3);
    return argument;
}

SITE void in_thread(void)
{
    pthread_t thread;
    check(pthread_create(&thread, NULL, thread_start, NULL) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
}

static unsigned long signal_bytes;

static void handler(int signal)
{
    (void)signal;
    leaf(signal_bytes);
    NO_TAIL;
}

/* The instruction that faults is the first of its function, and has no frame. */
void faulting_leaf(void);
__asm__(".text\n"
        ".type faulting_leaf, @function\n"
        "before_faulting_leaf:\n"
        "  ret\n"
        "faulting_leaf:\n"
        "  .cfi_startproc\n"
        "  ud2\n"
        "  ret\n"
        "  .cfi_endproc\n"
        ".size faulting_leaf, .-faulting_leaf\n");

static void fault_handler(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    LEAK(21011);
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

SITE void in_fault(void)
{
    char room[72];
    __asm__ volatile("" : : "r"(room) : "memory");
    faulting_leaf();
    __asm__ volatile("" : : "r"(room) : "memory");
}

SITE void in_handler(int signal, unsigned long bytes, int by_kill)
{
    signal_bytes = bytes;
    check((by_kill ? kill(getpid(), signal) : raise(signal)) == 0, "signal");
    NO_TAIL;
}

SITE void through_plugin(allocates *plugin_allocates, calls_back *plugin_calls_back,
                         unsigned long bytes)
{
    plugin_allocates(bytes);
    plugin_calls_back(callback, 1);
    NO_TAIL;
}

SITE void in_plugin(void)
{
    void *handle = dlopen(plugin, RTLD_NOW);
    check(handle != NULL, "dlopen");
    allocates *function = (allocates *)dlsym(handle, "library_allocates");
    calls_back *caller = (calls_back *)dlsym(handle, "library_calls_back");
    check(function != NULL && caller != NULL, "dlsym");
    /* A tracer may not know the plugin yet; it does once the test lets go on. */
    through_plugin(function, caller, 29999);
    unwind_stage("opened");
    through_plugin(function, caller, 21013);
}

static void run(void)
{
    sort();
    through_library();
    frame_pointer_clobbered(21015);
    stack_arguments(21017);
    in_thread();
    in_handler(SIGUSR1, 21019, 0);
    in_handler(SIGUSR1, 21021, 1);
    in_handler(SIGUSR2, 21023, 0);
    in_fault();
    recurse(21025, 1);
    recurse(21027, 21);
    recurse(21029, 100);
    recurse(21031, 5000);
    in_plugin();
}

static void set_handlers(void)
{
    static char other_stack[65536];
    stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    check(sigaltstack(&stack, NULL) == 0, "sigaltstack");
    struct sigaction action = {.sa_handler = handler};
    check(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    action.sa_flags = SA_ONSTACK;
    check(sigaction(SIGUSR2, &action, NULL) == 0, "sigaction");
    struct sigaction fault = {.sa_sigaction = fault_handler, .sa_flags = SA_SIGINFO};
    check(sigaction(SIGILL, &fault, NULL) == 0, "sigaction");
}

int main(int argc, char **argv)
{
    check(argc == 3, "usage: chain LIBRARY PLUGIN");
    plugin = argv[2];
    void *library = dlopen(argv[1], RTLD_NOW);
    check(library != NULL, "dlopen");
    library_calls_back = (calls_back *)dlsym(library, "library_calls_back");
    library_allocates = (allocates *)dlsym(library, "library_allocates");
    check(library_calls_back != NULL && library_allocates != NULL, "dlsym");
    set_handlers();
    unwind_rounds(run);
    return 0;
}
