/*
 * vmalloc and its relatives in sizes on both sides of 2 MiB, above which vmalloc gets
 * the array of its pages from itself.
 *
 * Commands: "take N" takes N blocks of each size by each function and keeps them,
 * "crowd N" has 48 threads take N blocks each at once, "give 0" frees all that were
 * taken.
 */
#include "driver.h"

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/numa.h>
#include <linux/vmalloc.h>

#define MOST_BLOCKS 512
#define CROWD 48

struct kept {
    void *block;
    size_t bytes;
    struct account *account;
};

static struct kept kept[MOST_BLOCKS];
static atomic_t kept_count = ATOMIC_INIT(0);

static int keep(void *block, size_t bytes, struct account *account)
{
    if (!block)
        return -ENOMEM;
    account_allocated(account, bytes);
    kept[atomic_inc_return(&kept_count) - 1] = (struct kept){ block, bytes, account };
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
    if (atomic_read(&kept_count) + number * ARRAY_SIZE(takers) > MOST_BLOCKS)
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

/* Below 2 MiB: a call makes no other. */
#define CROWD_BYTES (2000 * 1024UL)

ACCOUNT(vmalloc_in_crowd);
SITE int vmalloc_in_crowd(void)
{
    return keep(vzalloc(CROWD_BYTES), CROWD_BYTES, &vmalloc_in_crowd_account);
}

static atomic_t crowd_errors, crowd_at_work;
static DECLARE_COMPLETION(crowd_done);

static int crowd_member(void *number)
{
    for (unsigned long left = (unsigned long)number; left; left--) {
        if (vmalloc_in_crowd())
            atomic_inc(&crowd_errors);
    }
    if (atomic_dec_and_test(&crowd_at_work))
        complete(&crowd_done);
    return 0;
}

static int crowd(unsigned int number)
{
    static struct task_struct *members[CROWD];

    if (atomic_read(&kept_count) + number * CROWD > MOST_BLOCKS)
        return -EINVAL;
    atomic_set(&crowd_errors, 0);
    atomic_set(&crowd_at_work, CROWD);
    reinit_completion(&crowd_done);
    /* All are made before the first one runs: their stacks come from vmalloc as well. */
    for (int index = 0; index < CROWD; index++) {
        members[index] = kthread_create(crowd_member, (void *)(unsigned long)number, "crowd");
        if (IS_ERR(members[index])) {
            atomic_inc(&crowd_errors);
            if (atomic_dec_and_test(&crowd_at_work))
                complete(&crowd_done);
        }
    }
    for (int index = 0; index < CROWD; index++) {
        if (!IS_ERR(members[index]))
            wake_up_process(members[index]);
    }
    wait_for_completion(&crowd_done);
    return atomic_read(&crowd_errors) ? -ENOMEM : 0;
}

static int give(unsigned int unused)
{
    while (atomic_read(&kept_count)) {
        struct kept *last = &kept[atomic_dec_return(&kept_count)];

        account_freed(last->account, last->bytes);
        kvfree(last->block);
    }
    return 0;
}

static const struct command commands[] = {
    { "take", take },
    { "crowd", crowd },
    { "give", give },
    {},
};
static struct account *const accounts[] = {
#define ACCOUNTS(name) \
    &vmalloc_##name##_account, &kvmalloc_##name##_account, &vzalloc_node_##name##_account,
    ALL_SIZES(ACCOUNTS)
    &vmalloc_in_crowd_account,
    NULL,
};

PLAIN_DRIVER(commands, accounts);
