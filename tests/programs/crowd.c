/*
 * Many threads allocate at once, each below a way of its own through four
 * functions, blocks of a size of its own: a frame of another thread's stack shows
 * as a wrong name, a stack given to another thread's block as a wrong size. With a
 * third argument all of them are on one CPU, preempt one another, and free blocks in
 * between.
 *
 * Stages: ready, with what each thread will do, (byte: allocate) holding, (byte)
 * end without freeing.
 */
#define _GNU_SOURCE
#include "onecpu.h"

#define MOST 64

typedef void go(unsigned long way, unsigned left, unsigned long bytes);
static go red, green, blue, white;
static go *const colours[] = {red, green, blue, white};
static const char *const names[] = {"red", "green", "blue", "white"};

static unsigned long blocks_each;
static int is_one_cpu;
static pthread_barrier_t barrier;

SITE void site_crowd(unsigned long bytes)
{
    void *block = malloc(bytes);
    __asm__ volatile("" : "+r"(block) : : "memory");
}

SITE void site_brief(unsigned long bytes)
{
    void *block = malloc(bytes);
    __asm__ volatile("" : "+r"(block) : : "memory");
    block = realloc(block, 2 * bytes);
    __asm__ volatile("" : "+r"(block) : : "memory");
    free(block);
}

/* Each has a frame of its own size. */
#define COLOUR(name, room_bytes)                                                                   \
    SITE void name(unsigned long way, unsigned left, unsigned long bytes)                          \
    {                                                                                              \
        char room[room_bytes];                                                                     \
        __asm__ volatile("" : : "r"(room) : "memory");                                             \
        if (left)                                                                                  \
            colours[way & 3](way >> 2, left - 1, bytes);                                           \
        else                                                                                       \
            site_crowd(bytes);                                                                     \
        __asm__ volatile("" : : "r"(room) : "memory");                                             \
    }
COLOUR(red, 24)
COLOUR(green, 72)
COLOUR(blue, 40)
COLOUR(white, 136)

static unsigned long way_of(unsigned long n) { return (n + 1) * 0x9e3779b97f4a7c15ul; }
static unsigned length_of(unsigned long n) { return 3 + n * 5 % 29; }
static unsigned long bytes_of(unsigned long n) { return 1001 + 2 * n; }

static void *run(void *argument)
{
    unsigned long n = (unsigned long)argument;
    pthread_barrier_wait(&barrier);
    if (is_one_cpu)
        take_priority((int)n);
    for (unsigned long i = 0; i < blocks_each; i++) {
        red(way_of(n), length_of(n), bytes_of(n));
        if (is_one_cpu) {
            site_brief(bytes_of(n));
            step_aside(n + i);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[MOST];
    check(argc == 3 || argc == 4, "usage: crowd THREADS BLOCKS [one-cpu]");
    is_one_cpu = argc == 4;
    if (is_one_cpu)
        stay_on_one_cpu();
    unsigned long count = strtoul(argv[1], NULL, 10);
    blocks_each = strtoul(argv[2], NULL, 10);
    check(count > 0 && count <= MOST, "THREADS is 1 to 64");
    line_begin("ready");
    line_add(",\"threads\":[");
    for (unsigned long n = 0; n < count; n++) {
        /* Innermost last. */
        line_add("%s{\"bytes\":%lu,\"way\":[\"run\",\"red\"", n ? "," : "", bytes_of(n));
        unsigned long way = way_of(n);
        for (unsigned left = length_of(n); left; left--, way >>= 2)
            line_add(",\"%s\"", names[way & 3]);
        line_add(",\"site_crowd\"]}");
    }
    line_add("]");
    line_end();
    wait_for_byte();
    check(pthread_barrier_init(&barrier, NULL, (unsigned)count) == 0, "barrier");
    for (unsigned long n = 0; n < count; n++)
        check(pthread_create(&threads[n], NULL, run, (void *)n) == 0, "pthread_create");
    for (unsigned long n = 0; n < count; n++)
        check(pthread_join(threads[n], NULL) == 0, "pthread_join");
    line_begin("holding");
    line_end();
    wait_for_byte();
    return 0;
}
