/*
 * Programs that leak, each beside what a healthy server holds: a cache that fills
 * and churns, tables read at the start, and requests.
 */
#include "corpus.h"

#include <pthread.h>

/*
 * What every case has beside its leak: more memory than most of them leak. (Without volatile the
 * compiler would drop what is never read, and the tables would be lost.)
 */
static void *cache_slots[4000], *volatile startup_tables[600];
static size_t cache_next;

SITE void *healthy_cache_value(void) { return used(malloc(512 + random_below(1024))); }

SITE void *healthy_table(void) { return used(calloc(1, 700)); }

SITE void healthy_request(void)
{
    void *request = used(malloc(200)), *answer = used(malloc(1500));
    free(request);
    free(answer);
}

static void healthy_turn(void)
{
    if (turn == 0)
        for (size_t i = 0; i < 600; i++)
            startup_tables[i] = healthy_table();
    /* Full after 40 s. */
    for (unsigned i = times(30); i > 0; i--) {
        void **slot = &cache_slots[cache_next++ % 1200];
        free(*slot);
        *slot = healthy_cache_value();
    }
    for (unsigned i = times(20); i > 0; i--)
        healthy_request();
}

static void leak_times(double hertz, void (*leak)(void))
{
    healthy_turn();
    for (unsigned i = times(hertz); i > 0; i--)
        leak();
}

/* Each call leaks, at four rates. */
SITE void leak_1000(void) { used(malloc(32)); }
SITE void leak_10(void) { used(malloc(100)); }
SITE void leak_1(void) { used(malloc(100)); }
SITE void leak_tenth(void) { used(malloc(100)); }

static void fast_turn(void) { leak_times(1000, leak_1000); }
static void ten_turn(void) { leak_times(10, leak_10); }
static void one_turn(void) { leak_times(1, leak_1); }
static void tenth_turn(void) { leak_times(0.1, leak_tenth); }

/* One in so many blocks of a call site is forgotten, the others are freed at once. */
static uint64_t calls;

static inline __attribute__((always_inline)) void churn(uint64_t one_in)
{
    void *block = used(malloc(120));
    if (++calls % one_in != 0)
        free(block);
}

SITE void churn_10(void) { churn(10); }
SITE void churn_100(void) { churn(100); }
SITE void churn_1000(void) { churn(1000); }
SITE void churn_10000(void) { churn(10000); }

static void churn_10_turn(void) { leak_times(100, churn_10); }
static void churn_100_turn(void) { leak_times(400, churn_100); }
static void churn_1000_turn(void) { leak_times(1000, churn_1000); }
static void churn_10000_turn(void) { leak_times(2500, churn_10000); }

/* Fifty blocks at once, every 11 to 25 s. */
SITE void leak_in_bursts(void) { used(malloc(150)); }

static void bursts_turn(void)
{
    static uint64_t due = 5 * TURNS;
    healthy_turn();
    if (turn < due)
        return;
    for (int i = 0; i < 50; i++)
        leak_in_bursts();
    due = turn + (11 + random_below(14)) * TURNS;
}

/* Four hundred blocks, once. */
SITE void leak_once(void) { used(malloc(300)); }

static void once_turn(void)
{
    healthy_turn();
    if (turn == 10 * TURNS)
        for (int i = 0; i < 400; i++)
            leak_once();
}

/* Entries of a list that nobody ever removes. */
struct entry {
    struct entry *next;
    uint64_t key;
    char rest[180];
};
static struct entry *list_head, *buckets[1 << 16];

SITE void append_for_ever(void)
{
    struct entry *entry = used(malloc(sizeof *entry));
    entry->next = list_head;
    list_head = entry;
}

static void list_turn(void) { leak_times(40, append_for_ever); }

/* A cache without a bound: each key is new four times of five. */
SITE void unbounded_insert(uint64_t key)
{
    struct entry **bucket = &buckets[key % (1 << 16)], *entry = *bucket;
    while (entry && entry->key != key)
        entry = entry->next;
    if (entry)
        return;
    entry = used(malloc(sizeof *entry));
    entry->key = key;
    entry->next = *bucket;
    *bucket = entry;
}

static void unbounded_turn(void)
{
    healthy_turn();
    for (unsigned i = times(50); i > 0; i--)
        unbounded_insert(random_below(5) ? random_below(1ULL << 40) : random_below(10));
}

/* Sessions last a second; one in a hundred is never removed from the table. */
SITE struct entry *open_session(void) { return used(malloc(sizeof(struct entry))); }

static void forgotten_turn(void)
{
    static struct entry *open[TURNS * 4];
    static size_t opened;
    healthy_turn();
    for (unsigned i = times(200); i > 0; i--) {
        struct entry **place = &open[opened % (TURNS * 4)];
        if (*place && opened % 100 == 0) {
            (*place)->next = list_head;
            list_head = *place;
        } else {
            free(*place);
        }
        *place = open_session();
        opened++;
    }
}

/* A request that fails returns without freeing its buffer. */
SITE int handle_request(int fails)
{
    char *buffer = used(malloc(800));
    if (fails)
        return -1;
    free(buffer);
    return 0;
}

static void error_turn(void)
{
    healthy_turn();
    for (unsigned i = times(100); i > 0; i--)
        handle_request(random_below(50) == 0);
}

/* A buffer that realloc made larger is forgotten. */
SITE void grow_and_forget(void)
{
    char *buffer = used(malloc(50));
    buffer = used(realloc(buffer, 400));
}

static void realloc_turn(void) { leak_times(15, grow_and_forget); }

/* Layers, as in an extension of an interpreter: the call site of malloc serves everybody. */
SITE void *xmalloc(size_t size) { return used(malloc(size)); }

SITE char *xstrdup(const char *text)
{
    size_t size = strlen(text) + 1;
    return memcpy(xmalloc(size), text, size);
}

SITE void set_attribute(void) { xstrdup("the value of an attribute"); }

SITE void get_attribute(void) { free(xstrdup("the value of another attribute")); }

static void wrapped_turn(void)
{
    healthy_turn();
    for (unsigned i = times(200); i > 0; i--)
        get_attribute();
    for (unsigned i = times(8); i > 0; i--)
        set_attribute();
}

/* A record and its name: the name hangs from the record alone. */
struct record {
    char *name;
    char rest[90];
};

SITE void open_record(void)
{
    struct record *record = used(malloc(sizeof *record));
    record->name = used(malloc(70));
}

static void record_turn(void) { leak_times(10, open_record); }

/* A matrix of rows. */
SITE void make_matrix(void)
{
    double **rows = used(calloc(8, sizeof *rows));
    for (int i = 0; i < 8; i++)
        rows[i] = used(malloc(64));
}

static void matrix_turn(void) { leak_times(3, make_matrix); }

/* Each thread leaves a buffer behind. */
SITE void *thread_that_forgets(void *unused)
{
    (void)unused;
    used(malloc(500));
    free(used(malloc(100)));
    clean_stack();
    return NULL;
}

static void thread_turn(void)
{
    pthread_t thread;
    healthy_turn();
    if (!is_due(4))
        return;
    check(pthread_create(&thread, NULL, thread_that_forgets, NULL) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
}

/* Blocks that glibc maps one by one. */
SITE void leak_large(void) { used(malloc(256 << 10)); }

static void large_turn(void) { leak_times(2, leak_large); }

SITE void leak_aligned(void)
{
    void *block = NULL;
    check(posix_memalign(&block, 64, 192) == 0, "posix_memalign");
    used(block);
}

static void aligned_turn(void) { leak_times(10, leak_aligned); }

/* A slow leak of small blocks beside a cache that grows a thousand times faster, until it is full. */
SITE void *big_cache_value(void) { return used(malloc(2000)); }

SITE void leak_beside(void) { used(malloc(40)); }

static void beside_turn(void)
{
    static void *values[9000];
    static size_t next;
    leak_times(2, leak_beside);
    for (unsigned i = times(150); i > 0; i--) {
        void **slot = &values[next++ % 9000];
        free(*slot);
        *slot = big_cache_value();
    }
}

/* Two leaks, the first of ten times the bytes. */
SITE void leak_more(void) { used(malloc(400)); }
SITE void leak_less(void) { used(malloc(80)); }

static void two_turn(void)
{
    leak_times(10, leak_more);
    for (unsigned i = times(5); i > 0; i--)
        leak_less();
}

static const struct corpus_case cases[] = {
    {"aligned", NULL, aligned_turn},
    {"beside", NULL, beside_turn},
    {"bursts", NULL, bursts_turn},
    {"churn-10", NULL, churn_10_turn},
    {"churn-100", NULL, churn_100_turn},
    {"churn-1000", NULL, churn_1000_turn},
    {"churn-10000", NULL, churn_10000_turn},
    {"error", NULL, error_turn},
    {"fast", NULL, fast_turn},
    {"forgotten", NULL, forgotten_turn},
    {"large", NULL, large_turn},
    {"list", NULL, list_turn},
    {"matrix", NULL, matrix_turn},
    {"once", NULL, once_turn},
    {"one", NULL, one_turn},
    {"realloc", NULL, realloc_turn},
    {"record", NULL, record_turn},
    {"ten", NULL, ten_turn},
    {"tenth", NULL, tenth_turn},
    {"thread", NULL, thread_turn},
    {"two", NULL, two_turn},
    {"unbounded", NULL, unbounded_turn},
    {"wrapped", NULL, wrapped_turn},
};

int main(int argc, char **argv)
{
    return run_corpus(argc, argv, cases, sizeof cases / sizeof *cases);
}
