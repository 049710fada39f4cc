/*
 * Frees everything, but after a grace period. A block counts as freed when it is
 * handed to RCU.
 *
 * Commands: "kfree_rcu N" (the block holds an rcu_head), "kvfree_rcu N" (it does
 * not), "call_rcu N" (a callback of the driver's calls kfree); each does N blocks.
 */
#include "driver.h"

#include <linux/rcupdate.h>

struct node {
    char name[61];
    struct rcu_head rcu;
};

#define HEADLESS_BYTES 347

ACCOUNT(node_for_kfree_rcu);
SITE struct node *node_for_kfree_rcu(void)
{
    struct node *node = kmalloc(sizeof(*node), GFP_KERNEL);

    if (node)
        account_allocated(&node_for_kfree_rcu_account, sizeof(*node));
    return node;
}

ACCOUNT(block_for_kvfree_rcu);
SITE void *block_for_kvfree_rcu(void)
{
    void *block = kmalloc(HEADLESS_BYTES, GFP_KERNEL);

    if (block)
        account_allocated(&block_for_kvfree_rcu_account, HEADLESS_BYTES);
    return block;
}

ACCOUNT(node_for_call_rcu);
SITE struct node *node_for_call_rcu(void)
{
    struct node *node = kmalloc(sizeof(*node), GFP_KERNEL);

    if (node)
        account_allocated(&node_for_call_rcu_account, sizeof(*node));
    return node;
}

static void free_node(struct rcu_head *rcu)
{
    kfree(container_of(rcu, struct node, rcu));
}

static int run_kfree_rcu(unsigned int number)
{
    while (number--) {
        struct node *node = node_for_kfree_rcu();

        if (!node)
            return -ENOMEM;
        account_freed(&node_for_kfree_rcu_account, sizeof(*node));
        kfree_rcu(node, rcu);
    }
    return 0;
}

static int run_kvfree_rcu(unsigned int number)
{
    while (number--) {
        void *block = block_for_kvfree_rcu();

        if (!block)
            return -ENOMEM;
        account_freed(&block_for_kvfree_rcu_account, HEADLESS_BYTES);
        kvfree_rcu_mightsleep(block);
    }
    return 0;
}

static int run_call_rcu(unsigned int number)
{
    while (number--) {
        struct node *node = node_for_call_rcu();

        if (!node)
            return -ENOMEM;
        account_freed(&node_for_call_rcu_account, sizeof(*node));
        call_rcu(&node->rcu, free_node);
    }
    return 0;
}

static const struct command commands[] = {
    { "kfree_rcu", run_kfree_rcu },
    { "kvfree_rcu", run_kvfree_rcu },
    { "call_rcu", run_call_rcu },
    {},
};
static struct account *const accounts[] = {
    &node_for_kfree_rcu_account,
    &block_for_kvfree_rcu_account,
    &node_for_call_rcu_account,
    NULL,
};

static int __init start(void)
{
    return driver_start(commands, accounts);
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
    /* The callbacks are code of this module. */
    rcu_barrier();
}
module_exit(stop);
