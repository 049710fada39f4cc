/*
 * Every form of allocation and of freeing that an allocator has, each with its
 * account. As C++ (allocators.cpp) with the operators; with MALLOCX the functions
 * that only jemalloc has, with MIMALLOC those of mimalloc, with TCMALLOC those of
 * tcmalloc.
 *
 * Of each function 5 blocks: 2 are freed by it, each in another form where there
 * are two, 1 is freed in another thread, and 2 are held.
 *
 * With an argument, operator new is not made to fail: mimalloc ends the process.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end without freeing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "account.h"

#include <malloc.h>
#include <pthread.h>
#ifdef MALLOCX
#include <jemalloc/jemalloc.h>
#endif
#ifdef MIMALLOC
#include <mimalloc.h>
#endif
#ifdef TCMALLOC
#include <gperftools/tcmalloc.h>
#endif
#ifdef __cplusplus
#include <new>
#endif

#define BLOCKS 5

/* Read at run time: the compiler must not judge these calls. */
static volatile size_t huge = (size_t)PTRDIFF_MAX - 4096;
static volatile size_t half = (size_t)1 << 63;
static volatile size_t zero = 0;

SITE void *site_malloc(void) { return malloc(37); }
SITE void *site_malloc_zero(void) { return malloc(zero); }
SITE void *site_malloc_large(void) { return malloc(300007); }
SITE void *site_calloc(void) { return calloc(3, 19); }
SITE void *site_realloc_null(void) { return realloc(NULL, 83); }
SITE void *site_reallocarray(void) { return reallocarray(NULL, 11, 17); }
SITE void *site_aligned_alloc(void) { return aligned_alloc(64, 448); }
SITE void *site_memalign(void) { return memalign(32, 143); }
SITE void *site_valloc(void) { return valloc(211); }
SITE void *site_posix_memalign(void)
{
    void *address = NULL;
    return posix_memalign(&address, 64, 117) == 0 ? address : NULL;
}

SITE void *site_grow_old(void) { return malloc(163); }
SITE void *site_grow(void *old) { return realloc(old, 10007); }
SITE void *site_fails_old(void) { return malloc(173); }
SITE void *site_fails(void *old) { return realloc(old, huge); }
SITE void *site_to_zero_old(void) { return malloc(179); }
SITE void *site_to_zero(void *old) { return realloc(old, zero); }

#ifdef __cplusplus
static const std::align_val_t aligned = std::align_val_t(64);

SITE void *site_new(void) { return ::operator new(41); }
SITE void *site_new_array(void) { return ::operator new[](43); }
SITE void *site_new_nothrow(void) { return ::operator new(47, std::nothrow); }
SITE void *site_new_array_nothrow(void) { return ::operator new[](53, std::nothrow); }
/* libstdc++ rounds these up to their alignment. */
SITE void *site_new_aligned(void) { return ::operator new(128, aligned); }
SITE void *site_new_array_aligned(void) { return ::operator new[](192, aligned); }
SITE void *site_new_aligned_nothrow(void) { return ::operator new(256, aligned, std::nothrow); }
SITE void *site_new_array_aligned_nothrow(void)
{
    return ::operator new[](320, aligned, std::nothrow);
}
SITE void *site_new_large(void) { return ::operator new(300011); }
SITE void *site_thrown_over(void) { return malloc(1087); }

static void delete_plain(void *block, size_t) { ::operator delete(block); }
static void delete_sized(void *block, size_t size) { ::operator delete(block, size); }
static void delete_nothrow(void *block, size_t) { ::operator delete(block, std::nothrow); }
static void delete_array(void *block, size_t) { ::operator delete[](block); }
static void delete_array_sized(void *block, size_t size) { ::operator delete[](block, size); }
static void delete_array_nothrow(void *block, size_t) { ::operator delete[](block, std::nothrow); }
static void delete_aligned(void *block, size_t) { ::operator delete(block, aligned); }
static void delete_aligned_sized(void *block, size_t size)
{
    ::operator delete(block, size, aligned);
}
static void delete_aligned_nothrow(void *block, size_t)
{
    ::operator delete(block, aligned, std::nothrow);
}
static void delete_array_aligned(void *block, size_t) { ::operator delete[](block, aligned); }
static void delete_array_aligned_sized(void *block, size_t size)
{
    ::operator delete[](block, size, aligned);
}
static void delete_array_aligned_nothrow(void *block, size_t)
{
    ::operator delete[](block, aligned, std::nothrow);
}
#endif

#ifdef MALLOCX
SITE void *site_mallocx(void) { return mallocx(73, 0); }
SITE void *site_mallocx_aligned(void) { return mallocx(79, MALLOCX_ALIGN(128) | MALLOCX_ZERO); }
SITE void *site_rallocx_old(void) { return mallocx(89, 0); }
SITE void *site_rallocx(void *old) { return rallocx(old, 9001, 0); }
SITE void *site_xallocx_old(void) { return mallocx(1000, 0); }
SITE size_t site_xallocx(void *block) { return xallocx(block, 1011, 0, 0); }
SITE size_t site_xallocx_fails(void *block) { return xallocx(block, 1 << 20, 0, 0); }

static void free_x(void *block, size_t size) { (void)size, dallocx(block, 0); }
static void free_sized_x(void *block, size_t size) { sdallocx(block, size, 0); }
#endif

#ifdef MIMALLOC
SITE void *site_mi_malloc(void) { return mi_malloc(73); }
SITE void *site_mi_malloc_small(void) { return mi_malloc_small(77); }
SITE void *site_mi_zalloc(void) { return mi_zalloc(79); }
SITE void *site_mi_calloc(void) { return mi_calloc(3, 29); }
SITE void *site_mi_mallocn(void) { return mi_mallocn(3, 31); }
SITE void *site_mi_aligned(void) { return mi_malloc_aligned(101, 64); }
SITE void *site_mi_zalloc_aligned(void) { return mi_zalloc_aligned(103, 64); }
SITE void *site_mi_new(void) { return mi_new(107); }
SITE void *site_mi_heap_malloc(void) { return mi_heap_malloc(mi_heap_get_default(), 109); }
SITE void *site_mi_heap_calloc(void) { return mi_heap_calloc(mi_heap_get_default(), 3, 37); }
SITE void *site_mi_realloc_old(void) { return mi_malloc(113); }
SITE void *site_mi_realloc(void *old) { return mi_realloc(old, 9001); }
SITE void *site_mi_recalloc(void *old) { return mi_recalloc(old, 100, 97); }
SITE void *site_mi_realloc_aligned(void *old) { return mi_realloc_aligned(old, 9103, 64); }

static void free_mi(void *block, size_t size) { (void)size, mi_free(block); }
static void free_size_mi(void *block, size_t size) { mi_free_size(block, size); }
#endif

#ifdef TCMALLOC
SITE void *site_tc_malloc(void) { return tc_malloc(73); }
SITE void *site_tc_calloc(void) { return tc_calloc(3, 29); }

static void free_tc(void *block, size_t size) { (void)size, tc_free(block); }
static void free_sized_tc(void *block, size_t size) { tc_free_sized(block, size); }
#endif

static void free_plain(void *block, size_t size) { (void)size, free(block); }

static const struct form {
    const char *name;
    void *(*allocate)(void);
    size_t bytes;
    void (*free)(void *, size_t);
    void (*free_too)(void *, size_t);
} forms[] = {
#define FORM(site, bytes, free, free_too) {#site, site, bytes, free, free_too}
    FORM(site_malloc, 37, free_plain, free_plain),
    FORM(site_malloc_zero, 0, free_plain, free_plain),
    FORM(site_malloc_large, 300007, free_plain, free_plain),
    FORM(site_calloc, 57, free_plain, free_plain),
    FORM(site_realloc_null, 83, free_plain, free_plain),
    FORM(site_reallocarray, 187, free_plain, free_plain),
    FORM(site_aligned_alloc, 448, free_plain, free_plain),
    FORM(site_memalign, 143, free_plain, free_plain),
    FORM(site_valloc, 211, free_plain, free_plain),
    FORM(site_posix_memalign, 117, free_plain, free_plain),
#ifdef __cplusplus
    FORM(site_new, 41, delete_plain, delete_sized),
    FORM(site_new_array, 43, delete_array, delete_array_sized),
    FORM(site_new_nothrow, 47, delete_nothrow, free_plain),
    FORM(site_new_array_nothrow, 53, delete_array_nothrow, delete_array),
    FORM(site_new_aligned, 128, delete_aligned, delete_aligned_sized),
    FORM(site_new_array_aligned, 192, delete_array_aligned, delete_array_aligned_sized),
    FORM(site_new_aligned_nothrow, 256, delete_aligned_nothrow, delete_aligned),
    FORM(site_new_array_aligned_nothrow, 320, delete_array_aligned_nothrow, delete_array_aligned),
    FORM(site_new_large, 300011, delete_plain, delete_sized),
#endif
#ifdef MALLOCX
    FORM(site_mallocx, 73, free_x, free_sized_x),
    FORM(site_mallocx_aligned, 79, free_x, free_plain),
#endif
#ifdef MIMALLOC
    FORM(site_mi_malloc, 73, free_mi, free_size_mi),
    FORM(site_mi_malloc_small, 77, free_mi, free_mi),
    FORM(site_mi_zalloc, 79, free_mi, free_plain),
    FORM(site_mi_calloc, 87, free_mi, free_mi),
    FORM(site_mi_mallocn, 93, free_mi, free_mi),
    FORM(site_mi_aligned, 101, free_mi, free_mi),
    FORM(site_mi_zalloc_aligned, 103, free_mi, free_mi),
    FORM(site_mi_new, 107, free_mi, free_mi),
    FORM(site_mi_heap_malloc, 109, free_mi, free_mi),
    FORM(site_mi_heap_calloc, 111, free_mi, free_mi),
#endif
#ifdef TCMALLOC
    FORM(site_tc_malloc, 73, free_tc, free_sized_tc),
    FORM(site_tc_calloc, 87, free_tc, free_plain),
#endif
};
#define FORMS (sizeof forms / sizeof forms[0])

/* Beyond the forms: calls that resize a block. */
#define MOST_RESIZES 24
static struct account accounts[FORMS + MOST_RESIZES];
static size_t account_count;
static void *held[FORMS * BLOCKS + MOST_RESIZES + 1];
static size_t held_count;

static struct account *account_of(const char *name)
{
    for (size_t i = 0; i < account_count; i++)
        if (strcmp(accounts[i].name, name) == 0)
            return &accounts[i];
    check(account_count < sizeof accounts / sizeof accounts[0], "too many accounts");
    accounts[account_count].name = name;
    return &accounts[account_count++];
}

static void *in_thread(void *block)
{
    free(block);
    return NULL;
}

static void run_form(const struct form *form)
{
    struct account *account = account_of(form->name);
    void *blocks[BLOCKS];
    pthread_t thread;
    for (size_t i = 0; i < BLOCKS; i++) {
        blocks[i] = form->allocate();
        check(blocks[i] != NULL, form->name);
        account_allocated(account, form->bytes);
    }
    form->free(blocks[0], form->bytes);
    form->free_too(blocks[1], form->bytes);
    check(pthread_create(&thread, NULL, in_thread, blocks[2]) == 0, "pthread_create");
    check(pthread_join(thread, NULL) == 0, "pthread_join");
    for (size_t i = 0; i < 3; i++)
        account_freed(account, form->bytes);
    held[held_count++] = blocks[3];
    held[held_count++] = blocks[4];
}

/* A block of one site becomes one of another. */
static void resized(const char *old, size_t old_bytes, const char *site, void *block, size_t bytes)
{
    check(block != NULL, site);
    account_allocated(account_of(old), old_bytes);
    account_freed(account_of(old), old_bytes);
    account_allocated(account_of(site), bytes);
    held[held_count++] = block;
}

static void run_resizes(void)
{
    resized("site_grow_old", 163, "site_grow", site_grow(site_grow_old()), 10007);

    void *block = site_fails_old();
    check(site_fails(block) == NULL, "huge realloc");
    account_allocated(account_of("site_fails_old"), 173);
    account_of("site_fails");
    held[held_count++] = block;

    /* Some give a block of no bytes, and some nothing. */
    block = site_to_zero(site_to_zero_old());
    account_allocated(account_of("site_to_zero_old"), 179);
    account_freed(account_of("site_to_zero_old"), 179);
    account_of("site_to_zero");
    if (block != NULL)
        account_allocated(account_of("site_to_zero"), 0);
    held[held_count++] = block;

    check(malloc(huge) == NULL, "huge malloc");
    check(calloc(half, 3) == NULL, "calloc overflow");
    free(NULL);
#ifdef MALLOCX
    resized("site_rallocx_old", 89, "site_rallocx", site_rallocx(site_rallocx_old()), 9001);
    block = site_xallocx_old();
    check(site_xallocx(block) >= 1011, "xallocx within the block");
    resized("site_xallocx_old", 1000, "site_xallocx", block, 1011);
    check(site_xallocx_fails(block) < 1 << 20, "xallocx beyond the block");
    account_of("site_xallocx_fails");
#endif
#ifdef MIMALLOC
    block = site_mi_realloc(site_mi_realloc_old());
    resized("site_mi_realloc_old", 113, "site_mi_realloc", block, 9001);
    block = site_mi_recalloc(site_mi_realloc_old());
    resized("site_mi_realloc_old", 113, "site_mi_recalloc", block, 9700);
    block = site_mi_realloc_aligned(site_mi_realloc_old());
    resized("site_mi_realloc_old", 113, "site_mi_realloc_aligned", block, 9103);
#endif
}

#ifdef __cplusplus
static __attribute__((noinline)) void throw_from(int depth)
{
    if (depth > 0) {
        throw_from(depth - 1);
        __asm__ volatile("");
        return;
    }
    held[held_count++] = site_thrown_over();
    throw depth;
}

/* Exceptions go over the frames of allocations, and out of operator new. */
static void run_exceptions(int new_may_fail)
{
    int caught = 0;
    try {
        throw_from(5);
    } catch (int) {
        caught++;
    }
    account_allocated(account_of("site_thrown_over"), 1087);
    for (int i = 0; i < 3 && new_may_fail; i++) {
        try {
            held[held_count] = ::operator new(huge);
        } catch (const std::bad_alloc &) {
            caught++;
        }
    }
    check(caught == (new_may_fail ? 4 : 1), "exceptions caught");
}
#endif

int main(int argc, char **argv)
{
    (void)argv;
    for (size_t i = 0; i < FORMS; i++)
        account_of(forms[i].name);
    stage("ready", accounts, account_count);
#ifdef __cplusplus
    run_exceptions(argc == 1);
#else
    check(argc == 1, "no argument is known");
#endif
    for (size_t i = 0; i < FORMS; i++)
        run_form(&forms[i]);
    run_resizes();
    stage("holding", accounts, account_count);
    return 0;
}
