/*
 * Functions that acquire and release, named by nobody but a test: an arena with sizes, handles
 * through a pointer, references, numbers, nodes of trees, and calls that fail. With the argument
 * `jump` there are calls that never return as well; with SWITCHING, one that goes on in another thread.
 *
 * The account has what each site has acquired, and its bytes where a size is named. Stages: ready,
 * (byte: acquire) holding, (byte) end.
 */
#include "account.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdbool.h>
#ifdef SWITCHING
#include <ucontext.h>
#endif

#define PUBLIC __attribute__((noinline, noclone, used))

/* With HIDDEN, nothing tells from a function's code where it returns. */
#ifdef HIDDEN
static volatile bool never;
#define HIDE                                                                                       \
    do {                                                                                           \
        void *volatile next = never ? &&there : &&here;                                            \
        goto *next;                                                                                \
    there:                                                                                         \
        __asm__ volatile("");                                                                      \
    here:;                                                                                         \
    } while (0)
#else
#define HIDE                                                                                       \
    do {                                                                                           \
    } while (0)
#endif

/* An arena: arena_alloc(size=2),arena_calloc(size=2*3):arena_free(key=2) */
struct arena {
    size_t used;
    _Alignas(16) char bytes[1 << 20];
};
static struct arena arena;

PUBLIC void *arena_alloc(struct arena *arena, size_t size)
{
    HIDE;
    size_t rounded = (size + 15) / 16 * 16;
    if (rounded > sizeof arena->bytes - arena->used)
        return NULL;
    arena->used += rounded;
    return arena->bytes + arena->used - rounded;
}

/* Gives what arena_alloc has given: acquired once. */
PUBLIC void *arena_calloc(struct arena *arena, size_t count, size_t size)
{
    HIDE;
    return arena_alloc(arena, count * size);
}

PUBLIC void arena_free(struct arena *arena, void *block)
{
    (void)arena;
    *(char *)block = 0;
}

/* References: thing_get(key=1,if=true):thing_put,thing_drop */
struct thing {
    int references;
    bool dead;
};
static struct thing things[4];

PUBLIC bool thing_get(struct thing *thing)
{
    HIDE;
    if (thing->dead)
        return false;
    thing->references++;
    return true;
}

PUBLIC void thing_put(struct thing *thing) { thing->references--; }

/* Releases by another function of the pair: once. */
PUBLIC int thing_drop(struct thing *thing)
{
    thing_put(thing);
    return thing->references;
}

/* Doors: door_open(out=2):door_close */
struct door {
    int kind;
};
static struct door doors[64];
static int opened;

PUBLIC int door_open(int kind, struct door **door)
{
    HIDE;
    *door = &doors[opened % 64];
    if (kind < 0)
        return -1;
    doors[opened % 64].kind = kind;
    opened++;
    return 0;
}

PUBLIC void door_close(struct door *door) { door->kind = 0; }

/* Tickets, from 0 on: ticket_take(if=nonnegative):ticket_return */
static int next_ticket;

PUBLIC int ticket_take(bool fails)
{
    HIDE;
    return fails ? -1 : next_ticket++;
}

PUBLIC void ticket_return(int ticket) { next_ticket += ticket < 0; }

/* Trees, each node of which is acquired within its parent's call: node_new:node_free */
struct node {
    struct node *left, *right;
};
static struct node nodes[4096];
static int nodes_used;

PUBLIC struct node *node_new(int depth)
{
    HIDE;
    struct node *node = &nodes[nodes_used++];
    node->left = depth > 0 ? node_new(depth - 1) : NULL;
    node->right = depth > 0 ? node_new(depth - 1) : NULL;
    return node;
}

PUBLIC void node_free(struct node *node) { node->left = node->right = NULL; }

/* Failures, and calls that are left by longjmp: maybe_get:maybe_put */
static jmp_buf escape;
static char maybe[256];
#ifdef SWITCHING
static ucontext_t outside, inside;
#endif

PUBLIC void *maybe_get(int what)
{
    HIDE;
#ifdef SWITCHING
    if (what == -5) {
        swapcontext(&inside, &outside);
        return &maybe[255];
    }
#endif
    switch (what) {
    case -1:
        return NULL;
    case -2:
        return (void *)-1L;
    case -3:
        return (void *)-12L;
    case -4:
        longjmp(escape, 1);
    default:
        return &maybe[what];
    }
}

PUBLIC void maybe_put(void *it) { *(char *)it = 1; }

/* A call, and no jump. */
#define CALL(type, call)                                                                           \
    do {                                                                                           \
        type result = call;                                                                        \
        __asm__ volatile("" : "+r"(result));                                                       \
        return result;                                                                             \
    } while (0)

SITE void *site_arena(void) { CALL(void *, arena_alloc(&arena, 61)); }
SITE void *site_arena_array(void) { CALL(void *, arena_calloc(&arena, 3, 23)); }
SITE bool site_thing(struct thing *thing) { CALL(bool, thing_get(thing)); }
SITE int site_door(int kind, struct door **door) { CALL(int, door_open(kind, door)); }
SITE int site_ticket(bool fails) { CALL(int, ticket_take(fails)); }
SITE struct node *site_tree(int depth) { CALL(struct node *, node_new(depth)); }
SITE void *site_maybe(int what) { CALL(void *, maybe_get(what)); }
SITE void *site_thread(int what) { CALL(void *, maybe_get(what)); }

enum { ARENA, ARRAY, THING, DOOR, TICKET, TREE, MAYBE, THREAD };
static struct account accounts[] = {
    {.name = "site_arena"}, {.name = "site_arena_array"}, {.name = "site_thing"},
    {.name = "site_door"},  {.name = "site_ticket"},      {.name = "site_tree"},
    {.name = "site_maybe"}, {.name = "site_thread"},
};
#define ACCOUNTS (sizeof accounts / sizeof *accounts)

static void *run_thread(void *first)
{
    for (int i = 0; i < 10; i++) {
        void *it = site_thread(*(int *)first + i);
        if (i < 4)
            maybe_put(it);
    }
    return NULL;
}

#ifdef SWITCHING
/* The call that goes on in another thread than the one that began it. */
static void run_switching(void)
{
    check(site_maybe(-5) == &maybe[255], "a call of two threads");
    setcontext(&outside);
}

static void *enter(void *unused)
{
    swapcontext(&outside, &inside);
    return unused;
}

static void switch_threads(void)
{
    static _Alignas(16) char stack[64 * 1024];
    check(getcontext(&inside) == 0, "a context");
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = sizeof stack;
    makecontext(&inside, run_switching, 0);
    for (int i = 0; i < 2; i++) {
        pthread_t thread;
        check(pthread_create(&thread, NULL, enter, NULL) == 0, "a thread");
        check(pthread_join(thread, NULL) == 0, "a thread's end");
    }
}

#endif

/* What drop_shallow leaves on the stack is still there in get_and_put_deep, above its calls. */
SITE void drop_shallow(struct thing *thing)
{
    thing_drop(thing);
    __asm__ volatile("" : : : "memory");
}

SITE void get_and_put_deep(struct thing *thing)
{
    char room[1024];
    __asm__ volatile("" : : "r"(room) : "memory");
    check(site_thing(thing), "a thing");
    thing_put(thing);
    __asm__ volatile("" : : "r"(room) : "memory");
}

static void acquire(bool jumps)
{
    for (int i = 0; i < 9; i++) {
        void *block = site_arena(), *array = site_arena_array();
        account_allocated(&accounts[ARENA], 61);
        account_allocated(&accounts[ARRAY], 69);
        if (i < 4) {
            arena_free(&arena, block);
            arena_free(&arena, array);
            account_freed(&accounts[ARENA], 61);
            account_freed(&accounts[ARRAY], 69);
        }
    }
    /* Held up to 40 times at once, and by turns. */
    for (int i = 0; i < 160; i++) {
        check(site_thing(&things[i % 4]), "a thing");
        account_allocated(&accounts[THING], 0);
        if (i % 8 == 0) {
            thing_put(&things[i % 4]);
            account_freed(&accounts[THING], 0);
        }
    }
    for (int i = 0; i < 50; i++) {
        thing_drop(&things[i % 2 + 1]);
        account_freed(&accounts[THING], 0);
    }
    for (int i = 0; i < 5; i++) {
        drop_shallow(&things[0]);
        get_and_put_deep(&things[0]);
        account_freed(&accounts[THING], 0);
        account_allocated(&accounts[THING], 0);
        account_freed(&accounts[THING], 0);
    }
    things[3].dead = true;
    check(!site_thing(&things[3]), "a dead thing");
    for (int i = 0; i < 12; i++) {
        struct door *door;
        int failed = site_door(i % 3 - 1, &door);
        check(failed == (i % 3 == 0 ? -1 : 0), "a door");
        if (failed)
            continue;
        account_allocated(&accounts[DOOR], 0);
        if (i < 6) {
            door_close(door);
            account_freed(&accounts[DOOR], 0);
        }
    }
    for (int i = 0; i < 7; i++) {
        int ticket = site_ticket(i == 3);
        if (ticket < 0)
            continue;
        account_allocated(&accounts[TICKET], 0);
        if (ticket == 1) {
            ticket_return(ticket);
            account_freed(&accounts[TICKET], 0);
        }
    }
    site_tree(5);
    for (int i = 0; i < 63; i++)
        account_allocated(&accounts[TREE], 0);
    for (int i = 0; i < 10; i++) {
        node_free(&nodes[i * 6]);
        account_freed(&accounts[TREE], 0);
    }
    for (int i = 0; i < 20; i++) {
        /* The same one each time: it counts as often. */
        if ((i % 5 != 0 || jumps) && setjmp(escape) == 0)
            site_maybe(i % 5 - 4);
    }
    for (int i = 0; i < 4; i++)
        account_allocated(&accounts[MAYBE], 0);
    pthread_t threads[4];
    int first[4];
    for (int i = 0; i < 4; i++) {
        first[i] = 20 + 10 * i;
        check(pthread_create(&threads[i], NULL, run_thread, &first[i]) == 0, "a thread");
    }
    for (int i = 0; i < 4; i++)
        check(pthread_join(threads[i], NULL) == 0, "a thread's end");
    for (int i = 0; i < 40; i++)
        account_allocated(&accounts[THREAD], 0);
    for (int i = 0; i < 16; i++)
        account_freed(&accounts[THREAD], 0);
}

int main(int argc, char **argv)
{
    bool jumps = argc > 1 && strcmp(argv[1], "jump") == 0;
    /* Acquired before anything is traced. */
    void *old = arena_alloc(&arena, 7);
    thing_get(&things[0]);
    stage("ready", accounts, ACCOUNTS);
    arena_free(&arena, old);
    thing_put(&things[0]);
    acquire(jumps);
#ifdef SWITCHING
    switch_threads();
#endif
    stage("holding", accounts, ACCOUNTS);
    return 0;
}
