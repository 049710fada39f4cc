/*
 * Random ways through C functions without frame pointers: frames of all kinds,
 * callbacks of qsort and of a shared library, tail calls, signal handlers and
 * threads. Argument: the shared library. Stages: see maze.h.
 */
#define _GNU_SOURCE
#include "maze.h"

#include <alloca.h>
#include <pthread.h>
#include <signal.h>

static void (*library_calls_back)(void (*)(int), int);
static void *(*library_allocates)(unsigned long);

/* A call that comes back: no tail call. */
#define NO_TAIL __asm__ volatile("" : : : "memory")
#define USED(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

/* What a callback that has no argument of ours goes on with. */
static __thread struct maze *current;

static void step(struct maze *maze);

SITE void allocate(struct maze *maze)
{
    char *block = malloc(1 + maze_random(maze, 3000));
    check(block != NULL, "malloc");
    USED(block);
    free(block);
}

SITE void plain(struct maze *maze)
{
    step(maze);
    NO_TAIL;
}

SITE void tail(struct maze *maze)
{
    step(maze);
}

SITE void twice(struct maze *maze)
{
    allocate(maze);
    step(maze);
    allocate(maze);
}

SITE void with_alloca(struct maze *maze)
{
    char *room = alloca(16 + maze_random(maze, 2000));
    room[0] = 1;
    USED(room);
    step(maze);
    USED(room);
}

SITE void aligned(struct maze *maze)
{
    _Alignas(64) char room[200];
    USED(room);
    step(maze);
    USED(room);
}

SITE void aligned_with_alloca(struct maze *maze)
{
    _Alignas(32) char room[96];
    char *more = alloca(16 + maze_random(maze, 300));
    USED(room);
    USED(more);
    step(maze);
    USED(room);
    USED(more);
}

SITE void big_frame(struct maze *maze)
{
    char room[9000];
    USED(room);
    step(maze);
    USED(room);
}

/* Every register that is kept across calls is spilled. */
SITE long spilled(struct maze *maze, long a, long b, long c, long d, long e)
{
    long f = a * b, g = b * c, h = c * d, i = d * e;
    step(maze);
    NO_TAIL;
    return a + b + c + d + e + f + g + h + i;
}

/* The frame pointer is a register like any other. */
SITE void frame_pointer_clobbered(struct maze *maze)
{
    __asm__ volatile("" : : : "rbx", "rbp", "r12", "r13", "r14", "r15");
    spilled(maze, 1, 2, 3, 4, 5);
    __asm__ volatile("" : : : "rbx", "rbp", "r12", "r13", "r14", "r15");
}

/* Arguments on the stack move it between calls. */
SITE int many_arguments(int a, int b, int c, int d, int e, int f, int g, int h, struct maze *maze)
{
    step(maze);
    NO_TAIL;
    return a + b + c + d + e + f + g + h;
}

SITE int stack_arguments(struct maze *maze)
{
    int sum = many_arguments(1, 2, 3, 4, 5, 6, 7, 8, maze);
    NO_TAIL;
    return sum;
}

/* The first comparison goes on, so that the way does not fork. */
static int compare(const void *a, const void *b, void *argument)
{
    struct maze **once = argument;
    struct maze *maze = *once;
    *once = NULL;
    if (maze != NULL)
        step(maze);
    return *(const int *)a - *(const int *)b;
}

/* From 1 KiB on, qsort allocates itself. */
SITE void sort(struct maze *maze)
{
    int numbers[512];
    unsigned count = 2 + maze_random(maze, 510);
    for (unsigned i = 0; i < count; i++)
        numbers[i] = (int)maze_random(maze, 1000);
    struct maze *once = maze;
    qsort_r(numbers, count, sizeof numbers[0], compare, &once);
    USED(numbers);
}

static int compare_current(const void *a, const void *b)
{
    struct maze *maze = current;
    current = NULL;
    if (maze != NULL)
        step(maze);
    return *(const int *)a - *(const int *)b;
}

SITE void sort_current(struct maze *maze)
{
    int numbers[4] = {3, 1, 2, 0};
    current = maze;
    qsort(numbers, 4, sizeof numbers[0], compare_current);
    USED(numbers);
}

static void callback(int round)
{
    struct maze *maze = current;
    if (round == 0)
        step(maze);
    NO_TAIL;
}

SITE void through_library(struct maze *maze)
{
    current = maze;
    library_calls_back(callback, 2);
    free(library_allocates(1 + maze_random(maze, 500)));
}

static void handler(int signal)
{
    (void)signal;
    step(current);
    NO_TAIL;
}

SITE void in_handler(struct maze *maze)
{
    current = maze;
    check(raise(SIGUSR1) == 0, "raise");
}

static void *thread_start(void *argument)
{
    step(argument);
    return argument;
}

SITE void in_thread(struct maze *maze)
{
    pthread_t thread;
    check(pthread_create(&thread, NULL, thread_start, maze) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
}

static void step(struct maze *maze)
{
    static void (*const ways[])(struct maze *) = {
        plain, tail, twice, with_alloca, aligned, aligned_with_alloca, big_frame,
        frame_pointer_clobbered, sort, sort_current, through_library,
    };
    const unsigned count = sizeof ways / sizeof ways[0];
    if (maze->left == 0) {
        allocate(maze);
        return;
    }
    maze->left--;
    unsigned way = maze_random(maze, 100);
    if (way == 0)
        in_thread(maze);
    else if (way < 3)
        in_handler(maze);
    else if (way < 10)
        stack_arguments(maze);
    else
        ways[way % count](maze);
    NO_TAIL;
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage: maze LIBRARY");
    void *library = dlopen(argv[1], RTLD_NOW);
    check(library != NULL, "dlopen");
    library_calls_back = (void (*)(void (*)(int), int))dlsym(library, "library_calls_back");
    library_allocates = (void *(*)(unsigned long))dlsym(library, "library_allocates");
    check(library_calls_back != NULL && library_allocates != NULL, "dlsym");
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    check(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
    maze_run(step, 24);
    return 0;
}
