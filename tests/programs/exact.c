/*
 * Hard case: exactness under load. 8 threads make together 1,000,000 allocator
 * calls through 15 call sites, free half of the blocks, many of them in another
 * thread than the one that allocated them, and hold the rest (about 400,000).
 *
 * Stages: ready, (byte: allocate) holding, (byte: free all) freed, (byte) end.
 *
 * Sizes are odd and belong to one site each. A realloc counts as a free of the
 * old block at the site that made it, and an allocation at the site of the
 * realloc.
 */
#define _GNU_SOURCE
#include "account.h"

#include <malloc.h>
#include <pthread.h>

#define THREADS 8
#define CALLS_PER_THREAD 125000
#define MAILBOX_SLOTS CALLS_PER_THREAD

enum site {
    MALLOC_SMALL,
    MALLOC_VARIED,
    MALLOC_LARGE,
    MALLOC_MAPPED,
    CALLOC,
    REALLOC_NEW,
    REALLOC_GROW,
    REALLOC_SHRINK,
    REALLOCARRAY,
    POSIX_MEMALIGN_SMALL,
    POSIX_MEMALIGN_PAGE,
    ALIGNED_ALLOC,
    MEMALIGN,
    VALLOC,
    PVALLOC,
    SITES
};

static const char *const site_names[SITES] = {
    [MALLOC_SMALL] = "site_malloc_small",
    [MALLOC_VARIED] = "site_malloc_varied",
    [MALLOC_LARGE] = "site_malloc_large",
    [MALLOC_MAPPED] = "site_malloc_mapped",
    [CALLOC] = "site_calloc",
    [REALLOC_NEW] = "site_realloc_new",
    [REALLOC_GROW] = "site_realloc_grow",
    [REALLOC_SHRINK] = "site_realloc_shrink",
    [REALLOCARRAY] = "site_reallocarray",
    [POSIX_MEMALIGN_SMALL] = "site_posix_memalign_small",
    [POSIX_MEMALIGN_PAGE] = "site_posix_memalign_page",
    [ALIGNED_ALLOC] = "site_aligned_alloc",
    [MEMALIGN] = "site_memalign",
    [VALLOC] = "site_valloc",
    [PVALLOC] = "site_pvalloc",
};

struct block {
    void *address;
    uint32_t bytes;
    uint32_t site;
};

SITE void *site_malloc_small(void) { return malloc(37); }
SITE void *site_malloc_varied(size_t bytes) { return malloc(bytes); }
SITE void *site_malloc_large(void) { return malloc(20011); }
/* Above glibc's threshold: a mapping of its own. */
SITE void *site_malloc_mapped(void) { return malloc(300007); }
SITE void *site_calloc(void) { return calloc(3, 19); }
SITE void *site_realloc_new(void) { return realloc(NULL, 83); }
SITE void *site_realloc_grow(void *old) { return realloc(old, 449); }
SITE void *site_realloc_shrink(void *old) { return realloc(old, 13); }
/* glibc's reallocarray calls its realloc: one allocation, not two. */
SITE void *site_reallocarray(void *old) { return reallocarray(old, 11, 17); }

SITE void *site_posix_memalign_small(void)
{
    void *address = NULL;
    return posix_memalign(&address, 64, 117) == 0 ? address : NULL;
}

SITE void *site_posix_memalign_page(void)
{
    void *address = NULL;
    return posix_memalign(&address, 4096, 501) == 0 ? address : NULL;
}

SITE void *site_aligned_alloc(void) { return aligned_alloc(64, 448); }
SITE void *site_memalign(void) { return memalign(32, 143); }
SITE void *site_valloc(void) { return valloc(211); }
SITE void *site_pvalloc(void) { return pvalloc(307); }

/* Blocks that one thread hands to another to be freed there. */
static struct mailbox {
    pthread_mutex_t lock;
    size_t count;
    struct block blocks[MAILBOX_SLOTS];
} mailboxes[THREADS];

static struct worker {
    pthread_t thread;
    unsigned number;
    uint64_t random;
    size_t live_count;
    struct block live[CALLS_PER_THREAD];
    struct account accounts[SITES];
} workers[THREADS];

static struct account totals[SITES];
static pthread_barrier_t all_allocated;

/* xorshift64: each run and each thread makes the same calls. */
static uint32_t draw(struct worker *worker, uint32_t limit)
{
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    worker->random ^= worker->random << 17;
    return (uint32_t)(worker->random >> 33) % limit;
}

static void keep(struct worker *worker, enum site site, void *address, size_t bytes)
{
    check(address != NULL, site_names[site]);
    account_allocated(&worker->accounts[site], bytes);
    worker->live[worker->live_count++] = (struct block){address, (uint32_t)bytes, site};
}

/* Takes a live block out of the list, at random. */
static struct block take(struct worker *worker)
{
    size_t index = draw(worker, (uint32_t)worker->live_count);
    struct block block = worker->live[index];
    worker->live[index] = worker->live[--worker->live_count];
    return block;
}

static void release(struct worker *worker, struct block block)
{
    account_freed(&worker->accounts[block.site], block.bytes);
    free(block.address);
}

static void drain(struct worker *worker)
{
    struct mailbox *mailbox = &mailboxes[worker->number];
    pthread_mutex_lock(&mailbox->lock);
    while (mailbox->count > 0)
        release(worker, mailbox->blocks[--mailbox->count]);
    pthread_mutex_unlock(&mailbox->lock);
}

static void send(struct worker *worker, struct block block)
{
    struct mailbox *mailbox = &mailboxes[(worker->number + 1) % THREADS];
    pthread_mutex_lock(&mailbox->lock);
    check(mailbox->count < MAILBOX_SLOTS, "mailbox full");
    mailbox->blocks[mailbox->count++] = block;
    pthread_mutex_unlock(&mailbox->lock);
}

static void resize(struct worker *worker, enum site site, void *(*call)(void *), size_t bytes)
{
    struct block old = take(worker);
    account_freed(&worker->accounts[old.site], old.bytes);
    keep(worker, site, call(old.address), bytes);
}

/* The rare forms: one call in 250. */
static void allocate_rare(struct worker *worker)
{
    switch (draw(worker, 6)) {
    case 0: keep(worker, ALIGNED_ALLOC, site_aligned_alloc(), 448); break;
    case 1: keep(worker, MEMALIGN, site_memalign(), 143); break;
    case 2: keep(worker, VALLOC, site_valloc(), 211); break;
    case 3: keep(worker, PVALLOC, site_pvalloc(), 307); break;
    case 4: keep(worker, POSIX_MEMALIGN_PAGE, site_posix_memalign_page(), 501); break;
    /* 300 kB each, never touched. */
    case 5: keep(worker, MALLOC_MAPPED, site_malloc_mapped(), 300007); break;
    }
}

static void allocate(struct worker *worker)
{
    uint32_t dice = draw(worker, 1000);
    if (dice < 4) {
        allocate_rare(worker);
    } else if (dice < 300) {
        keep(worker, MALLOC_SMALL, site_malloc_small(), 37);
    } else if (dice < 450) {
        size_t bytes = 1001 + 2 * draw(worker, 50);
        keep(worker, MALLOC_VARIED, site_malloc_varied(bytes), bytes);
    } else if (dice < 455) {
        keep(worker, MALLOC_LARGE, site_malloc_large(), 20011);
    } else if (dice < 600) {
        keep(worker, CALLOC, site_calloc(), 3 * 19);
    } else if (dice < 700) {
        keep(worker, REALLOC_NEW, site_realloc_new(), 83);
    } else if (dice < 800) {
        keep(worker, POSIX_MEMALIGN_SMALL, site_posix_memalign_small(), 117);
    } else if (worker->live_count == 0 || dice < 850) {
        keep(worker, REALLOCARRAY, site_reallocarray(NULL), 11 * 17);
    } else if (dice < 900) {
        resize(worker, REALLOCARRAY, site_reallocarray, 11 * 17);
    } else if (dice < 960) {
        resize(worker, REALLOC_GROW, site_realloc_grow, 449);
    } else {
        resize(worker, REALLOC_SHRINK, site_realloc_shrink, 13);
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    for (size_t call = 0; call < CALLS_PER_THREAD; call++) {
        allocate(worker);
        uint32_t fate = draw(worker, 100);
        if (worker->live_count > 0 && fate < 23)
            release(worker, take(worker));
        else if (worker->live_count > 0 && fate < 45)
            send(worker, take(worker));
        if (call % 64 == 0)
            drain(worker);
    }
    /* Nothing is sent after this, so that the last mail is read. */
    pthread_barrier_wait(&all_allocated);
    drain(worker);
    return NULL;
}

static void sum_up(void)
{
    uint64_t calls = 0;
    for (size_t site = 0; site < SITES; site++) {
        totals[site] = (struct account){.name = site_names[site]};
        for (size_t i = 0; i < THREADS; i++) {
            const struct account *part = &workers[i].accounts[site];
            totals[site].allocated_count += part->allocated_count;
            totals[site].allocated_bytes += part->allocated_bytes;
            totals[site].freed_count += part->freed_count;
            totals[site].freed_bytes += part->freed_bytes;
        }
        calls += totals[site].allocated_count;
    }
    check(calls == 0 || calls == THREADS * CALLS_PER_THREAD, "number of calls");
}

int main(void)
{
    sum_up();
    stage("ready", totals, SITES);

    pthread_barrier_init(&all_allocated, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_mutex_init(&mailboxes[i].lock, NULL);
        workers[i].number = i;
        workers[i].random = 0x9E3779B97F4A7C15u * (i + 1);
        check(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "pthread_create");
    }
    for (size_t i = 0; i < THREADS; i++)
        check(pthread_join(workers[i].thread, NULL) == 0, "pthread_join");
    sum_up();
    stage("holding", totals, SITES);

    for (size_t i = 0; i < THREADS; i++)
        while (workers[i].live_count > 0)
            release(&workers[i], workers[i].live[--workers[i].live_count]);
    sum_up();
    stage("freed", totals, SITES);
    return 0;
}
