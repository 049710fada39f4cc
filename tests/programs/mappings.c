/*
 * Hard case: memory that a program maps itself, every way of taking a part of it
 * away again, and memory that others map for it, which is no leak of its own.
 *
 * Stages: ready, (byte: map) holding, (byte) end. Beside the accounts the line of
 * `holding` tells how many bytes of malloc's it holds (`blocks`) and the PID of a
 * child that has ended (`child`).
 *
 * Each mapping counts as one block until its last byte is gone; its bytes are
 * those of whole pages. mremap ends the old mapping and makes a new one, as
 * realloc does with blocks.
 */
#define _GNU_SOURCE
#include "account.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define PAGE 4096ul
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)

enum site {
    WHOLE, HEAD, MIDDLE, TAIL, SPLIT_GONE, UNDER, OVER, GROW, GROWN, SHRINK, SHRUNK, MOVE, MOVED,
    TARGET, FIXED, FIXED_OLD, KEEP, KEPT, SEVERAL, THREAD, SHARED, ODD, FILE_OVER, DIRECT,
    REFUSED, BREAK, RANDOM, REMAPPED, RACING, FORKED, SITES
};

static struct account accounts[SITES] = {
    [WHOLE] = {"site_whole"}, [HEAD] = {"site_head"}, [MIDDLE] = {"site_middle"},
    [TAIL] = {"site_tail"}, [SPLIT_GONE] = {"site_split_gone"}, [UNDER] = {"site_under"},
    [OVER] = {"site_over"}, [GROW] = {"site_grow"}, [GROWN] = {"site_grown"},
    [SHRINK] = {"site_shrink"}, [SHRUNK] = {"site_shrunk"}, [MOVE] = {"site_move"},
    [MOVED] = {"site_moved"}, [TARGET] = {"site_target"}, [FIXED] = {"site_fixed"},
    [FIXED_OLD] = {"site_fixed_old"}, [KEEP] = {"site_keep"}, [KEPT] = {"site_kept"},
    [SEVERAL] = {"site_several"}, [THREAD] = {"site_thread"}, [SHARED] = {"site_shared"},
    [ODD] = {"site_odd"}, [FILE_OVER] = {"site_file_over"}, [DIRECT] = {"site_direct"},
    [REFUSED] = {"site_refused"}, [BREAK] = {"site_break"}, [RANDOM] = {"site_random"},
    [REMAPPED] = {"site_remapped"}, [RACING] = {"site_racing"},
    [FORKED] = {"site_forked"},
};

/* One function a site, as a leak report names functions. */
#define MAP_SITE(name) \
    SITE char *site_##name(void *at, size_t bytes, int prot, int flags, int fd) \
    { return mmap(at, bytes, prot, flags, fd, 0); }
#define REMAP_SITE(name) \
    SITE char *site_##name(void *old, size_t from, size_t to, int flags, void *at) \
    { return mremap(old, from, to, flags, at); }

MAP_SITE(whole) MAP_SITE(head) MAP_SITE(middle) MAP_SITE(tail) MAP_SITE(split_gone)
MAP_SITE(under) MAP_SITE(over) MAP_SITE(grow) MAP_SITE(shrink) MAP_SITE(move) MAP_SITE(target)
MAP_SITE(fixed_old) MAP_SITE(keep) MAP_SITE(several) MAP_SITE(thread) MAP_SITE(shared)
MAP_SITE(odd) MAP_SITE(file_over) MAP_SITE(refused) MAP_SITE(random) MAP_SITE(racing) MAP_SITE(forked)
REMAP_SITE(grown) REMAP_SITE(shrunk) REMAP_SITE(moved) REMAP_SITE(fixed) REMAP_SITE(kept)
REMAP_SITE(remapped)

/* Not through the C library's mmap. */
SITE char *site_direct(size_t bytes)
{
    return (char *)syscall(SYS_mmap, NULL, bytes, RW, ANON, -1, 0);
}

SITE void *site_break(intptr_t bytes) { return sbrk(bytes); }

#define MAP(SITE_ID, name, pages) \
    (account_allocated(&accounts[SITE_ID], (pages) * PAGE), \
     good(site_##name(NULL, (pages) * PAGE, RW, ANON, -1)))

static char *good(char *address)
{
    check(address != MAP_FAILED, "mmap or mremap");
    return address;
}

/* Unmaps pages of one site; `last`: nothing is left of the mapping. */
static void unmap(enum site site, char *at, size_t pages, int last)
{
    check(munmap(at, pages * PAGE) == 0, "munmap");
    accounts[site].freed_bytes += pages * PAGE;
    accounts[site].freed_count += (uint64_t)last;
}

static void gone(enum site site, size_t pages, int last)
{
    accounts[site].freed_bytes += pages * PAGE;
    accounts[site].freed_count += (uint64_t)last;
}

static char *held_thread;

static void parts(void)
{
    unmap(HEAD, MAP(HEAD, head, 10), 3, 0);
    unmap(MIDDLE, MAP(MIDDLE, middle, 11) + 4 * PAGE, 2, 0);
    unmap(TAIL, MAP(TAIL, tail, 12) + 7 * PAGE, 5, 0);
    unmap(WHOLE, MAP(WHOLE, whole, 13), 13, 1);
    /* A mapping of which the two halves go one after the other. */
    char *split = MAP(SPLIT_GONE, split_gone, 9);
    unmap(SPLIT_GONE, split + 3 * PAGE, 3, 0);
    unmap(SPLIT_GONE, split, 3, 0);
    unmap(SPLIT_GONE, split + 6 * PAGE, 3, 1);
    /* Three mappings side by side, one call over the end of the first to the start of the
     * last. */
    char *room = good(mmap(NULL, 30 * PAGE, PROT_NONE, ANON, -1, 0));
    for (int i = 0; i < 3; i++) {
        account_allocated(&accounts[SEVERAL], 10 * PAGE);
        good(site_several(room + i * 10 * PAGE, 10 * PAGE, RW, ANON | MAP_FIXED, -1));
    }
    unmap(SEVERAL, room + 5 * PAGE, 20, 1);
    /* Unmapping what is not mapped succeeds and does nothing. */
    check(munmap(room + 5 * PAGE, 20 * PAGE) == 0, "munmap of a hole");
}

static int own_file(void)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    check(fd >= 0, "open");
    return fd;
}

static void overlays(void)
{
    char *under = MAP(UNDER, under, 20);
    account_allocated(&accounts[OVER], 5 * PAGE);
    good(site_over(under + 6 * PAGE, 5 * PAGE, RW, ANON | MAP_FIXED, -1));
    gone(UNDER, 5, 0);
    /* A file over another part: no memory of the program's, but the end of what was there. */
    char *at = under + 15 * PAGE;
    good(site_file_over(at, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, own_file()));
    gone(UNDER, 2, 0);
    /* A call that is refused changes nothing. */
    check(munmap(under + 1, PAGE) != 0, "munmap of an odd address");
    check(munmap(under, 0) != 0, "munmap of nothing");
    char *refused =
        site_refused(under, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1);
    check(refused == MAP_FAILED, "mmap without replacement");
    check(mremap(under, PAGE, 3 * PAGE, 0) == MAP_FAILED, "mremap without room");
}

static void remaps(void)
{
    /* In place: there is room behind it. */
    char *room = good(mmap(NULL, 16 * PAGE, PROT_NONE, ANON, -1, 0));
    check(munmap(room, 16 * PAGE) == 0, "munmap of the room");
    account_allocated(&accounts[GROW], 4 * PAGE);
    char *grow = good(site_grow(room, 4 * PAGE, RW, ANON | MAP_FIXED, -1));
    char *grown = good(site_grown(grow, 4 * PAGE, 10 * PAGE, 0, NULL));
    check(grown == grow, "growth in place");
    gone(GROW, 4, 1);
    account_allocated(&accounts[GROWN], 10 * PAGE);

    char *shrink = MAP(SHRINK, shrink, 9);
    char *shrunk = good(site_shrunk(shrink, 9 * PAGE, 2 * PAGE, 0, NULL));
    check(shrunk == shrink, "shrinking in place");
    gone(SHRINK, 9, 1);
    account_allocated(&accounts[SHRUNK], 2 * PAGE);

    /* The middle of a mapping, to another place, and larger. */
    char *move = MAP(MOVE, move, 8);
    char *moved = good(site_moved(move + 2 * PAGE, 3 * PAGE, 300 * PAGE, MREMAP_MAYMOVE, NULL));
    check(moved != move + 2 * PAGE, "moving");
    gone(MOVE, 3, 0);
    account_allocated(&accounts[MOVED], 300 * PAGE);

    /* Over the middle of another mapping. */
    char *target = MAP(TARGET, target, 20);
    char *old = MAP(FIXED_OLD, fixed_old, 4);
    good(site_fixed(old, 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                    target + 3 * PAGE));
    gone(FIXED_OLD, 4, 1);
    gone(TARGET, 6, 0);
    account_allocated(&accounts[FIXED], 6 * PAGE);

    /* The old addresses stay mapped. */
    char *keep = MAP(KEEP, keep, 5);
    good(site_kept(keep, 5 * PAGE, 5 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
    account_allocated(&accounts[KEPT], 5 * PAGE);
}

static void *map_in_thread(void *unused)
{
    (void)unused;
    held_thread = MAP(THREAD, thread, 17);
    return NULL;
}

static void *unmap_in_thread(void *unused)
{
    (void)unused;
    unmap(THREAD, held_thread + 2 * PAGE, 6, 0);
    return NULL;
}

static void in_thread(void *(*work)(void *))
{
    pthread_t thread;
    check(pthread_create(&thread, NULL, work, NULL) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
}

/* Threads that unmap and map at once are given each other's addresses: each holds one mapping
 * in a hundred. */
#define RACERS 4
#define ROUNDS 2000

static void *race(void *unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        size_t pages = 1 + (size_t)round % 3;
        char *at = good(site_racing(NULL, pages * PAGE, RW, ANON, -1));
        if (round % 100 != 0)
            check(munmap(at, pages * PAGE) == 0, "munmap in a race");
    }
    return NULL;
}

static void races(void)
{
    pthread_t threads[RACERS];
    for (int i = 0; i < RACERS; i++)
        check(pthread_create(&threads[i], NULL, race, NULL) == 0, "pthread_create");
    for (int i = 0; i < RACERS; i++)
        check(pthread_join(threads[i], NULL) == 0, "pthread_join");
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < RACERS; i++)
            account_allocated(&accounts[RACING], (1 + (size_t)round % 3) * PAGE);
        if (round % 100 != 0)
            for (int i = 0; i < RACERS; i++)
                gone(RACING, 1 + (size_t)round % 3, 1);
    }
}

static void others(void)
{
    in_thread(map_in_thread);
    in_thread(unmap_in_thread);
    account_allocated(&accounts[SHARED], 7 * PAGE);
    good(site_shared(NULL, 7 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1));
    /* Sizes are rounded up to pages, by mmap and by munmap. */
    account_allocated(&accounts[ODD], 3 * PAGE);
    char *odd = good(site_odd(NULL, 2 * PAGE + 1, RW, ANON, -1));
    check(munmap(odd + PAGE, 1) == 0, "munmap of one byte");
    gone(ODD, 1, 0);
    account_allocated(&accounts[DIRECT], 19 * PAGE);
    good(site_direct(19 * PAGE));
}

/* A child unmaps what is a copy of its parent's memory, and maps two pages of its own. */
static pid_t child;

SITE char *site_child(void) { return mmap(NULL, 2 * PAGE, RW, ANON, -1, 0); }

static void forks(void)
{
    char *at = MAP(FORKED, forked, 6);
    child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        check(munmap(at, 3 * PAGE) == 0, "munmap in a child");
        good(site_child());
        _exit(0);
    }
    check(waitpid(child, NULL, 0) == child, "waitpid");
}

/* Pages of an arena, each with the mapping that it belongs to: what leaktrace should know. */
#define ARENA 256
#define STEPS 20000

static struct {
    enum site site;
    size_t pages;
} mappings[STEPS + 1];
static unsigned owner[ARENA], next_mapping = 1;
static uint32_t seed = 20240607;

static size_t random_below(size_t bound)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % bound;
}

static void arena_clear(size_t from, size_t pages)
{
    for (size_t page = from; page < from + pages; page++) {
        unsigned id = owner[page];
        if (id == 0)
            continue;
        owner[page] = 0;
        gone(mappings[id].site, 1, --mappings[id].pages == 0);
    }
}

static void arena_set(enum site site, size_t from, size_t pages)
{
    arena_clear(from, pages);
    mappings[next_mapping].site = site;
    mappings[next_mapping].pages = pages;
    for (size_t page = from; page < from + pages; page++)
        owner[page] = next_mapping;
    next_mapping++;
    account_allocated(&accounts[site], pages * PAGE);
}

static void at_random(void)
{
    char *arena = good(mmap(NULL, ARENA * PAGE, PROT_NONE, ANON, -1, 0));
    for (int step = 0; step < STEPS; step++) {
        size_t from = random_below(ARENA - 16), pages = 1 + random_below(16);
        char *at = arena + from * PAGE;
        switch (random_below(3)) {
        case 0:
            good(site_random(at, pages * PAGE, RW, ANON | MAP_FIXED, -1));
            arena_set(RANDOM, from, pages);
            break;
        case 1:
            check(munmap(at, pages * PAGE) == 0, "munmap in the arena");
            arena_clear(from, pages);
            break;
        default: {
            size_t to = random_below(ARENA - 16), new_pages = 1 + random_below(16);
            int apart = to + new_pages <= from || from + pages <= to;
            int mapped = owner[from] != 0;
            for (size_t page = from; page < from + pages; page++)
                mapped = mapped && owner[page] == owner[from];
            if (!apart || !mapped)
                break;
            good(site_remapped(at, pages * PAGE, new_pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                               arena + to * PAGE));
            arena_clear(from, pages);
            arena_set(REMAPPED, to, new_pages);
        }
        }
    }
}

static void *big_block;
static pthread_t waiting;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

SITE void *site_big_block(void) { return malloc(5000011); }

static void *wait_at_gate(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return NULL;
}

/* What others map for the program: no leak of its own. */
static void for_others(void)
{
    big_block = site_big_block();
    check(big_block != NULL, "malloc");
    big_block = realloc(big_block, 7000003);
    check(big_block != NULL, "realloc");
    pthread_mutex_lock(&gate);
    check(pthread_create(&waiting, NULL, wait_at_gate, NULL) == 0, "pthread_create");
}

int main(void)
{
    stage("ready", accounts, SITES);
    parts();
    overlays();
    remaps();
    others();
    races();
    forks();
    at_random();
    for_others();
    /* Last, as malloc moves the break as well. */
    check(site_break(5 * PAGE) != (void *)-1, "sbrk");
    account_allocated(&accounts[BREAK], 5 * PAGE);
    check(sbrk(-2 * (intptr_t)PAGE) != (void *)-1, "sbrk back");
    gone(BREAK, 2, 0);
    line_begin("holding");
    line_add_accounts(accounts, SITES);
    line_add(",\"blocks\":7000003,\"child\":%d", (int)child);
    line_end();
    wait_for_byte();
    pthread_mutex_unlock(&gate);
    check(pthread_join(waiting, NULL) == 0, "pthread_join");
    free(big_block);
    return 0;
}
