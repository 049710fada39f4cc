/*
 * Programs that leak nothing, whatever they hold meanwhile: caches, pools, batches
 * and queues.
 */
#define _GNU_SOURCE
#include "corpus.h"

#include <math.h>
#include <pthread.h>

/* A table of blocks in which new ones take the place of the oldest. */
struct cache {
    void **slots;
    size_t capacity, next;
};

static void cache_put(struct cache *cache, void *block)
{
    void **slot = &cache->slots[cache->next++ % cache->capacity];
    free(*slot);
    *slot = block;
}

#define CACHE(name, size)                                                                          \
    static void *name##_slots[size];                                                               \
    static struct cache name = {.slots = name##_slots, .capacity = size}

/* An LRU cache that is full after 30 s, and churns on. */
CACHE(lru, 3000);

SITE void lru_insert(void) { cache_put(&lru, used(malloc(64 + random_below(256)))); }

static void lru_turn(void)
{
    for (unsigned i = times(100); i > 0; i--)
        lru_insert();
}

/* One that was full before the tracer came: each new block takes the place of one it never saw. */
CACHE(older, 3000);

SITE void older_insert(void) { cache_put(&older, used(malloc(200))); }

static void older_before(void)
{
    for (int i = 0; i < 3000; i++)
        older_insert();
}

static void older_turn(void)
{
    for (unsigned i = times(60); i > 0; i--)
        older_insert();
}

/* One that would be full after ten minutes. */
CACHE(slow, 30000);

SITE void slow_insert(void) { cache_put(&slow, used(malloc(160))); }

static void slow_turn(void)
{
    for (unsigned i = times(50); i > 0; i--)
        slow_insert();
}

/* Names that are interned: 2,000 of them, each kept when it is first met. */
static char *interned[2000];

SITE void intern_name(void)
{
    char **name = &interned[random_below(2000)];
    if (*name == NULL)
        *name = used(strdup("a name that many lines have"));
}

static void intern_turn(void)
{
    for (unsigned i = times(200); i > 0; i--)
        intern_name();
}

/* A pool: objects go back to its list and are taken from there. */
struct object {
    struct object *next;
    char rest[200];
};
static struct object *pool_free, *pool_used[400];

SITE struct object *pool_grow(void) { return used(malloc(sizeof(struct object))); }

static void pool_turn(void)
{
    for (unsigned i = times(200); i > 0; i--) {
        struct object **place = &pool_used[random_below(400)];
        if (*place) {
            (*place)->next = pool_free;
            pool_free = *place;
            *place = NULL;
        } else if (pool_free) {
            *place = pool_free;
            pool_free = (*place)->next;
        } else {
            *place = pool_grow();
        }
    }
}

/*
 * Tables are built for 15 s; then requests are served, and nothing is added. (Without volatile the
 * compiler would drop what is never read, and the tables would be lost.)
 */
static void *volatile tables[4000];
static size_t table_count;

SITE void build_table(void) { tables[table_count++] = used(calloc(1, 120)); }

SITE void serve_request(void)
{
    void *request = used(malloc(300)), *answer = used(malloc(900));
    free(request);
    free(answer);
}

static void warm_turn(void)
{
    for (unsigned i = times(200); i > 0 && seconds_so_far() < 15; i--)
        build_table();
    for (unsigned i = times(100); i > 0; i--)
        serve_request();
}

/* A batch grows, and is freed at its end. */
static void *batch[20000];
static size_t batch_count;

static void batch_end(void)
{
    while (batch_count > 0)
        free(batch[--batch_count]);
}

SITE void sawtooth_add(void) { batch[batch_count++] = used(malloc(250)); }

static void sawtooth_turn(void)
{
    for (unsigned i = times(50); i > 0; i--)
        sawtooth_add();
    if (turn % (20 * TURNS) == 20 * TURNS - 1)
        batch_end();
}

/* The same over 170 s: longer than one looks at it. */
static void long_sawtooth_turn(void)
{
    for (unsigned i = times(50); i > 0; i--)
        sawtooth_add();
    if (turn % (170 * TURNS) == 170 * TURNS - 1)
        batch_end();
}

SITE void job_load(void) { batch[batch_count++] = used(malloc(1000)); }

/* Every ten seconds a job loads for a second, works for two, and is over. */
static void job_turn(void)
{
    uint64_t phase = turn % (10 * TURNS);
    for (unsigned i = times(600); i > 0 && phase < TURNS; i--)
        job_load();
    if (phase == 3 * TURNS)
        batch_end();
}

/* An arena takes chunks, and gives all of them back every 5 s. */
SITE void arena_chunk(void) { batch[batch_count++] = used(malloc(64 << 10)); }

static void arena_turn(void)
{
    if (is_due(5))
        arena_chunk();
    if (turn % (5 * TURNS) == 5 * TURNS - 1)
        batch_end();
}

/* Lines by every way that the C library has; to nowhere, as a pipe would fill. */
SITE void print_line(void)
{
    char *text = NULL;
    check(asprintf(&text, "turn %llu\n", (unsigned long long)turn) > 0, "asprintf");
    fputs(text, stdout);
    free(text);
}

SITE void print_file(void)
{
    FILE *file = fopen("/dev/null", "w");
    check(file != NULL, "/dev/null");
    fprintf(file, "%f\n", seconds_so_far());
    fclose(file);
}

SITE void print_memory(void)
{
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    check(stream != NULL, "open_memstream");
    fprintf(stream, "%300d", 1);
    fclose(stream);
    free(text);
}

static void printer_turn(void)
{
    if (turn == 0)
        check(freopen("/dev/null", "w", stdout) != NULL, "/dev/null");
    for (unsigned i = times(150); i > 0; i--)
        print_line();
    for (unsigned i = times(10); i > 0; i--)
        print_file();
    for (unsigned i = times(20); i > 0; i--)
        print_memory();
}

/* Threads that come, work and go. */
SITE void *thread_work(void *unused)
{
    void *blocks[20];
    (void)unused;
    for (int i = 0; i < 20; i++)
        blocks[i] = used(malloc(100 + (size_t)i * 30));
    for (int i = 0; i < 20; i++)
        free(blocks[i]);
    return NULL;
}

static void threads_turn(void)
{
    pthread_t thread;
    if (!is_due(8))
        return;
    check(pthread_create(&thread, NULL, thread_work, NULL) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
}

/* A vector that grows by realloc for 7 s, and then shrinks. */
static char *vector;
static size_t vector_size;

SITE void vector_resize(size_t size)
{
    vector = used(realloc(vector, size));
    vector_size = size;
}

static void vector_turn(void)
{
    if (is_due(10))
        vector_resize(turn % (7 * TURNS) < 6 ? 1000 : vector_size + 1000);
}

/* A queue whose entries are worked off ten seconds later. */
static void *queue[100 * 11];
static size_t queue_head, queue_tail;

SITE void queue_push(void) { queue[queue_head++ % (100 * 11)] = used(malloc(400)); }

static void delayed_turn(void)
{
    for (unsigned i = times(100); i > 0; i--)
        queue_push();
    while (queue_head - queue_tail > 1000)
        free(queue[queue_tail++ % (100 * 11)]);
}

/* A working set that follows the load: up and down once a minute. */
SITE void *open_connection(void) { return used(malloc(700)); }

static void follow_load(size_t wanted)
{
    while (batch_count < wanted)
        batch[batch_count++] = open_connection();
    while (batch_count > wanted)
        free(batch[--batch_count]);
}

static void diurnal_turn(void)
{
    follow_load((size_t)(600 - 500 * cos(seconds_so_far() * 2 * M_PI / 60)));
    for (unsigned i = times(20); i > 0; i--)
        serve_request();
}

/* Sessions: each has a length, in turns, and is closed at its end. */
struct session {
    struct session *next;
    uint64_t end;
    char rest[300];
};
static struct session *sessions;

SITE void open_session(uint64_t turns)
{
    struct session *session = used(malloc(sizeof *session));
    session->end = turn + turns;
    session->next = sessions;
    sessions = session;
}

static void close_sessions(void)
{
    for (struct session **place = &sessions; *place;) {
        struct session *session = *place;
        if (session->end <= turn) {
            *place = session->next;
            free(session);
        } else {
            place = &session->next;
        }
    }
}

/* Traffic that rises for 40 s and stays: sessions of two seconds. */
static void ramp_turn(void)
{
    double rate = 10 + 4 * (seconds_so_far() < 40 ? seconds_so_far() : 40);
    static double owed;
    for (owed += rate / TURNS; owed >= 1; owed--)
        open_session(2 * TURNS);
    close_sessions();
}

/* Lengths with a long tail: half of the sessions end within a second, one in 60 lasts half a minute. */
static void tail_turn(void)
{
    for (unsigned i = times(40); i > 0; i--) {
        double luck = ((double)random_below(10000) + 1) / 10000;
        double seconds = 0.5 / luck;
        open_session((uint64_t)((seconds < 30 ? seconds : 30) * TURNS));
    }
    close_sessions();
}

/* A few connections that last 25 to 45 s each. */
static void long_lived_turn(void)
{
    if (is_due(0.5))
        open_session((25 + random_below(20)) * TURNS);
    close_sessions();
}

/* The last thousand lines of a log. */
CACHE(log_ring, 1000);

SITE void log_line(void)
{
    char *line = NULL;
    check(asprintf(&line, "line of turn %llu", (unsigned long long)turn) > 0, "asprintf");
    cache_put(&log_ring, line);
}

static void ring_turn(void)
{
    for (unsigned i = times(100); i > 0; i--)
        log_line();
}

/* A configuration that is read anew every 15 s; the old one goes when the new one is there. */
static void *config[200];

SITE void *config_entry(void) { return used(malloc(90)); }

static void reload_turn(void)
{
    if (turn % (15 * TURNS) != 0)
        return;
    void *fresh[200];
    for (int i = 0; i < 200; i++)
        fresh[i] = config_entry();
    for (int i = 0; i < 200; i++) {
        free(config[i]);
        config[i] = fresh[i];
    }
    memset(fresh, 0, sizeof fresh);
}

/* Buffers above the threshold of mmap, a few at a time. */
CACHE(big_buffers, 4);

SITE void big_buffer(void) { cache_put(&big_buffers, used(malloc(300 << 10))); }

static void big_turn(void)
{
    if (is_due(5))
        big_buffer();
}

/* A table that is made twice as large when it is full, and keys that enter and leave. */
static void **slots;
static size_t slot_count, key_count;

SITE void *make_slots(size_t count) { return used(calloc(count, sizeof(void *))); }

SITE void *make_key(void) { return used(malloc(48)); }

static void put(void **table, size_t count, void *key)
{
    size_t place = random_below(count);
    while (table[place])
        place = (place + 1) % count;
    table[place] = key;
}

static void table_turn(void)
{
    if (slots == NULL)
        slots = make_slots(slot_count = 16);
    for (unsigned i = times(100); i > 0; i--) {
        if (key_count * 2 >= slot_count) {
            void **larger = make_slots(slot_count * 2);
            for (size_t place = 0; place < slot_count; place++)
                if (slots[place])
                    put(larger, slot_count * 2, slots[place]);
            free(slots);
            slots = larger;
            slot_count *= 2;
        }
        put(slots, slot_count, make_key());
        key_count++;
        /* From 700 keys on, one leaves for each that enters. */
        for (size_t place = random_below(slot_count); key_count > 700; place = (place + 1) % slot_count)
            if (slots[place]) {
                free(slots[place]);
                slots[place] = NULL;
                key_count--;
            }
    }
}

static const struct corpus_case cases[] = {
    {"arena", NULL, arena_turn},
    {"big", NULL, big_turn},
    {"delayed", NULL, delayed_turn},
    {"diurnal", NULL, diurnal_turn},
    {"intern", NULL, intern_turn},
    {"job", NULL, job_turn},
    {"long-lived", NULL, long_lived_turn},
    {"long-sawtooth", NULL, long_sawtooth_turn},
    {"lru", NULL, lru_turn},
    {"lru-older", older_before, older_turn},
    {"lru-slow", NULL, slow_turn},
    {"pool", NULL, pool_turn},
    {"printer", NULL, printer_turn},
    {"ramp", NULL, ramp_turn},
    {"reload", NULL, reload_turn},
    {"ring", NULL, ring_turn},
    {"sawtooth", NULL, sawtooth_turn},
    {"table", NULL, table_turn},
    {"tail", NULL, tail_turn},
    {"threads", NULL, threads_turn},
    {"vector", NULL, vector_turn},
    {"warm-up", NULL, warm_turn},
};

int main(int argc, char **argv)
{
    return run_corpus(argc, argv, cases, sizeof cases / sizeof *cases);
}
