/*
 * vmalloc and its relatives in sizes on both sides of 2 MiB, above which vmalloc gets
 * the array of its pages from itself.
 *
 * Commands: "take N" takes N blocks of each size by each function and keeps them,
 * "give 0" frees all that were taken.
 */
#include "driver.h"

#include <linux/mm.h>
#include <linux/numa.h>
#include <linux/vmalloc.h>

#define MOST_BLOCKS 64

struct kept {
    void *block;
    size_t bytes;
    struct account *account;
};

static struct kept kept[MOST_BLOCKS];
static unsigned int kept_count;

static int keep(void *block, size_t bytes, struct account *account)
{
    if (!block)
        return -ENOMEM;
    account_allocated(account, bytes);
    kept[kept_count++] = (struct kept){ block, bytes, account };
    return 0;
}

#define TAKE(name, kib)                                                                 \
    ACCOUNT(vmalloc_##name);                                                            \
    SITE int vmalloc_##name(void)                                                       \
    {                                                                                   \
        return keep(vmalloc((kib) * 1024UL), (kib) * 1024UL, &vmalloc_##name##_account); \
    }                                                                                   \
    ACCOUNT(kvmalloc_##name);                                                           \
    SITE int kvmalloc_##name(void)                                                      \
    {                                                                                   \
        return keep(kvmalloc((kib) * 1024UL, GFP_KERNEL), (kib) * 1024UL,                \
                    &kvmalloc_##name##_account);                                        \
    }                                                                                   \
    ACCOUNT(vzalloc_node_##name);                                                       \
    SITE int vzalloc_node_##name(void)                                                  \
    {                                                                                   \
        return keep(vzalloc_node((kib) * 1024UL, NUMA_NO_NODE), (kib) * 1024UL,          \
                    &vzalloc_node_##name##_account);                                    \
    }

TAKE(1_mib, 1024)
TAKE(2048_kib, 2048)
TAKE(2052_kib, 2052)
TAKE(5_mib, 5 * 1024)
TAKE(17_mib, 17 * 1024)
TAKE(64_mib, 64 * 1024)

#define ALL_SIZES(each) \
    each(1_mib) each(2048_kib) each(2052_kib) each(5_mib) each(17_mib) each(64_mib)

static int (*const takers[])(void) = {
#define TAKERS(name) vmalloc_##name, kvmalloc_##name, vzalloc_node_##name,
    ALL_SIZES(TAKERS)
};

static int take(unsigned int number)
{
    if (kept_count + number * ARRAY_SIZE(takers) > MOST_BLOCKS)
        return -EINVAL;
    while (number--) {
        for (unsigned int index = 0; index < ARRAY_SIZE(takers); index++) {
            int error = takers[index]();

            if (error)
                return error;
        }
    }
    return 0;
}

static int give(unsigned int unused)
{
    while (kept_count) {
        struct kept *last = &kept[--kept_count];

        account_freed(last->account, last->bytes);
        kvfree(last->block);
    }
    return 0;
}

static const struct command commands[] = {
    { "take", take },
    { "give", give },
    {},
};
static struct account *const accounts[] = {
#define ACCOUNTS(name) \
    &vmalloc_##name##_account, &kvmalloc_##name##_account, &vzalloc_node_##name##_account,
    ALL_SIZES(ACCOUNTS)
    NULL,
};

PLAIN_DRIVER(commands, accounts);
