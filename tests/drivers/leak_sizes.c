/*
 * Leaks kmalloc blocks of ten sizes, each from a function of its own: the
 * smallest cache, exact and inexact fits, a cache that is no power of two (192),
 * the largest cache, and two that go past the caches to the page allocator.
 *
 * Commands: "leak N", N blocks of each size.
 */
#include "driver.h"

#define SIZES(each)                                                                     \
    each(8) each(16) each(64) each(100) each(192) each(1000) each(4096) each(8192)      \
    each(8200) each(100000)

#define LEAK(bytes)                                                \
    ACCOUNT(leak_##bytes);                                         \
    SITE int leak_##bytes(unsigned int number)                     \
    {                                                              \
        while (number--) {                                         \
            if (!kmalloc(bytes, GFP_KERNEL))                       \
                return -ENOMEM;                                    \
            account_allocated(&leak_##bytes##_account, bytes);     \
        }                                                          \
        return 0;                                                  \
    }
SIZES(LEAK)

#define CALL(bytes) error = error ? error : leak_##bytes(number);
static int leak(unsigned int number)
{
    int error = 0;

    SIZES(CALL)
    return error;
}

static const struct command commands[] = { { "leak", leak }, {} };

#define ENTRY(bytes) &leak_##bytes##_account,
static struct account *const accounts[] = { SIZES(ENTRY) NULL };

PLAIN_DRIVER(commands, accounts);
