/*
 * A process whose threads give themselves a name: 50 pipes by its first thread,
 * and 50 by each of two others, which are called "worker".
 *
 * Stages: ready, (byte: create) holding, (byte) end.
 */
#define _GNU_SOURCE
#include "account.h"

#include <pthread.h>
#include <sys/prctl.h>

#define PIPES 50
#define THREADS 2

static pthread_barrier_t named;

static void create_pipes(void)
{
    for (int i = 0; i < PIPES; i++) {
        int ends[2];
        check(pipe(ends) == 0, "pipe");
    }
}

static void *work(void *unused)
{
    (void)unused;
    check(prctl(PR_SET_NAME, "worker") == 0, "prctl");
    pthread_barrier_wait(&named);
    pthread_barrier_wait(&named);
    create_pipes();
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];

    check(pthread_barrier_init(&named, NULL, THREADS + 1) == 0, "barrier");
    for (int i = 0; i < THREADS; i++)
        check(pthread_create(&threads[i], NULL, work, NULL) == 0, "pthread_create");
    pthread_barrier_wait(&named);
    line_begin("ready");
    line_end();
    wait_for_byte();
    pthread_barrier_wait(&named);
    create_pipes();
    for (int i = 0; i < THREADS; i++)
        check(pthread_join(threads[i], NULL) == 0, "pthread_join");
    line_begin("holding");
    line_end();
    wait_for_byte();
    return 0;
}
