/*
 * What the C library keeps for itself, beside leaks that look alike. Without an
 * argument all that is outstanding at the end is the library's: a locale, the buffer
 * of standard output, users' names, what stacks of ended threads keep for new ones.
 *
 * Arguments: strdup, fopen (a stream and its buffer), or threads (nobody joins them)
 * leak as well.
 */
#define _GNU_SOURCE
#include <locale.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SITE static __attribute__((noinline, noclone, used))
#define THREADS 4
#define LOST_THREADS 12

static void *volatile kept;
static pthread_barrier_t met;

static void *wait_for_others(void *unused)
{
    pthread_barrier_wait(&met);
    return unused;
}

static void *end(void *unused) { return unused; }

static void join_threads(void)
{
    pthread_t threads[THREADS];
    pthread_barrier_init(&met, NULL, THREADS);
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, wait_for_others, NULL))
            exit(3);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

SITE void site_strdup(void) { kept = strdup("a string of the caller"); }

SITE void site_fopen(void)
{
    FILE *stream = fopen("/etc/passwd", "r");
    if (!stream || fgetc(stream) == EOF)
        exit(3);
    kept = stream;
}

SITE void site_threads(void)
{
    pthread_t thread;
    for (int i = 0; i < LOST_THREADS; i++)
        if (pthread_create(&thread, NULL, end, NULL))
            exit(3);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    setlocale(LC_ALL, "C.UTF-8");
    if (!getpwuid(0))
        return 3;
    join_threads();
    if (!strcmp(what, "strdup"))
        site_strdup();
    if (!strcmp(what, "fopen"))
        site_fopen();
    if (!strcmp(what, "threads"))
        site_threads();
    printf("done\n");
    return 0;
}
