/*
 * Hard case: what each allocator call means. One function for each case, called
 * once, with a size of its own; the account is written down by hand beside each
 * case, so that it does not follow from the code under test.
 *
 * Stages: ready, (byte: run all cases) holding, (byte) end without freeing.
 */
#define _GNU_SOURCE
#include "account.h"

#include <malloc.h>
#include <pthread.h>

/* Read at run time: the compiler must not judge these calls. */
static volatile size_t huge = (size_t)PTRDIFF_MAX - 4096;
static volatile size_t half = (size_t)1 << 63;
static volatile size_t zero = 0;
static volatile size_t bad_alignment = 24;

SITE void *case_malloc(void) { return malloc(1003); }
SITE void *case_malloc_zero(void) { return malloc(zero); }
SITE void *case_malloc_too_large(void) { return malloc(huge); }
SITE void *case_calloc(void) { return calloc(7, 13); }
SITE void *case_calloc_overflow(void) { return calloc(half, 3); }
SITE void *case_realloc_null(void) { return realloc(NULL, 59); }
SITE void *case_realloc_null_zero(void) { return realloc(NULL, zero); }
SITE void *case_realloc_grow_old(void) { return malloc(163); }
SITE void *case_realloc_grow(void *old) { return realloc(old, 10007); }
SITE void *case_realloc_shrink_old(void) { return malloc(40009); }
SITE void *case_realloc_shrink(void *old) { return realloc(old, 151); }
SITE void *case_realloc_fails_old(void) { return malloc(173); }
SITE void *case_realloc_fails(void *old) { return realloc(old, huge); }
SITE void *case_realloc_to_zero_old(void) { return malloc(179); }
SITE void *case_realloc_to_zero(void *old) { return realloc(old, zero); }
SITE void *case_reallocarray_old(void) { return malloc(181); }
SITE void *case_reallocarray(void *old) { return reallocarray(old, 13, 31); }
SITE void *case_reallocarray_overflow_old(void) { return malloc(191); }
SITE void *case_reallocarray_overflow(void *old) { return reallocarray(old, half, 3); }
SITE void *case_aligned_alloc(void) { return aligned_alloc(128, 1152); }
SITE void *case_memalign(void) { return memalign(32, 1013); }
SITE void *case_valloc(void) { return valloc(1019); }
SITE void *case_pvalloc(void) { return pvalloc(1021); }
SITE void *case_malloc_mapped(void) { return malloc(1000003); }
SITE void *case_free_in_thread(void) { return malloc(1031); }
SITE void *case_malloc_in_thread(void) { return malloc(1033); }
SITE void *case_again(void) { return malloc(1039); }
SITE void *case_usable_size(void) { return malloc(1049); }
SITE void case_free_null(void *null) { free(null); }

SITE int case_posix_memalign(void **out) { return posix_memalign(out, 256, 1051); }
/* The result stays what it was: a tracer that reads it after a failure sees a live block. */
SITE int case_posix_memalign_invalid(void **out) { return posix_memalign(out, bad_alignment, 1061); }
SITE int case_posix_memalign_no_memory(void **out) { return posix_memalign(out, 64, huge); }

static const struct account expected[] = {
    /* name                            allocated   freed */
    {"case_malloc",                    1, 1003,    0, 0},
    /* A block of no bytes is a block. */
    {"case_malloc_zero",               1, 0,       0, 0},
    {"case_malloc_too_large",          0, 0,       0, 0},
    {"case_calloc",                    1, 91,      0, 0},
    {"case_calloc_overflow",           0, 0,       0, 0},
    {"case_realloc_null",              1, 59,      0, 0},
    {"case_realloc_null_zero",         1, 0,       0, 0},
    {"case_realloc_grow_old",          1, 163,     1, 163},
    {"case_realloc_grow",              1, 10007,   0, 0},
    {"case_realloc_shrink_old",        1, 40009,   1, 40009},
    {"case_realloc_shrink",            1, 151,     0, 0},
    {"case_realloc_fails_old",         1, 173,     0, 0},
    {"case_realloc_fails",             0, 0,       0, 0},
    {"case_realloc_to_zero_old",       1, 179,     1, 179},
    {"case_realloc_to_zero",           0, 0,       0, 0},
    {"case_reallocarray_old",          1, 181,     1, 181},
    {"case_reallocarray",              1, 403,     0, 0},
    {"case_reallocarray_overflow_old", 1, 191,     0, 0},
    {"case_reallocarray_overflow",     0, 0,       0, 0},
    {"case_aligned_alloc",             1, 1152,    0, 0},
    {"case_memalign",                  1, 1013,    0, 0},
    {"case_valloc",                    1, 1019,    0, 0},
    /* Bytes asked for, not the page it is rounded up to. */
    {"case_pvalloc",                   1, 1021,    0, 0},
    {"case_malloc_mapped",             1, 1000003, 0, 0},
    {"case_free_in_thread",            1, 1031,    1, 1031},
    {"case_malloc_in_thread",          1, 1033,    0, 0},
    /* Allocated, freed, allocated again, very likely at the same address. */
    {"case_again",                     2, 2078,    1, 1039},
    {"case_usable_size",               1, 1049,    0, 0},
    {"case_free_null",                 0, 0,       0, 0},
    {"case_posix_memalign",            1, 1051,    0, 0},
    {"case_posix_memalign_invalid",    0, 0,       0, 0},
    {"case_posix_memalign_no_memory",  0, 0,       0, 0},
};

static struct account nothing[sizeof expected / sizeof expected[0]];
#define CASES (sizeof expected / sizeof expected[0])

static void *held[CASES];
static size_t held_count;

static void hold(void *address)
{
    check(address != NULL, "an allocation failed");
    held[held_count++] = address;
}

static void *in_thread(void *block)
{
    free(block);
    return case_malloc_in_thread();
}

static void run_realloc_cases(void)
{
    hold(case_realloc_null());
    hold(case_realloc_null_zero());
    hold(case_realloc_grow(case_realloc_grow_old()));
    hold(case_realloc_shrink(case_realloc_shrink_old()));
    hold(case_realloc_fails_old());
    check(case_realloc_fails(held[held_count - 1]) == NULL, "huge realloc");
    check(case_realloc_to_zero(case_realloc_to_zero_old()) == NULL, "realloc to 0");
    hold(case_reallocarray(case_reallocarray_old()));
    hold(case_reallocarray_overflow_old());
    check(case_reallocarray_overflow(held[held_count - 1]) == NULL, "reallocarray overflow");
}

static void run_aligned_cases(void)
{
    void *result = NULL;
    hold(case_aligned_alloc());
    hold(case_memalign());
    hold(case_valloc());
    hold(case_pvalloc());
    check(case_posix_memalign(&result) == 0, "posix_memalign");
    hold(result);
    check(case_posix_memalign_invalid(&result) == EINVAL, "posix_memalign, bad alignment");
    check(case_posix_memalign_no_memory(&result) == ENOMEM, "posix_memalign, too large");
    check(result == held[held_count - 1], "posix_memalign changed its result");
}

static void run_thread_cases(void)
{
    pthread_t thread;
    void *result = NULL;
    check(pthread_create(&thread, NULL, in_thread, case_free_in_thread()) == 0, "pthread_create");
    check(pthread_join(thread, &result) == 0, "pthread_join");
    hold(result);
}

int main(void)
{
    for (size_t i = 0; i < CASES; i++)
        nothing[i].name = expected[i].name;
    stage("ready", nothing, CASES);

    hold(case_malloc());
    hold(case_malloc_zero());
    check(case_malloc_too_large() == NULL, "huge malloc");
    hold(case_calloc());
    check(case_calloc_overflow() == NULL, "calloc overflow");
    hold(case_malloc_mapped());
    free(case_again());
    hold(case_again());
    hold(case_usable_size());
    /* An allocator call that neither allocates nor frees. */
    check(malloc_usable_size(held[held_count - 1]) >= 1049, "usable size");
    case_free_null(NULL);
    run_realloc_cases();
    run_aligned_cases();
    run_thread_cases();
    stage("holding", expected, CASES);
    return 0;
}
