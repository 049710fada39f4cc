/*
 * Leaks objects of a cache of its own, leak_item. The cache is never destroyed
 * then: kmem_cache_destroy would warn of the objects that are left.
 *
 * Commands: "leak N", "take N" (kept for later), "give 0" (frees those).
 */
#include "driver.h"

#include <linux/list.h>

struct item {
    struct list_head link;
    char value[137];
};

static struct kmem_cache *cache;
static LIST_HEAD(items);

/* A cache with a constructor is not merged with another of its size, and keeps its name. */
static void construct(void *object)
{
    memset(object, 0, sizeof(struct item));
}

ACCOUNT(lose_item);
SITE int lose_item(void)
{
    if (!kmem_cache_alloc(cache, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&lose_item_account, sizeof(struct item));
    return 0;
}

ACCOUNT(take_item);
SITE int take_item(void)
{
    struct item *item = kmem_cache_alloc(cache, GFP_KERNEL);

    if (!item)
        return -ENOMEM;
    account_allocated(&take_item_account, sizeof(*item));
    list_add(&item->link, &items);
    return 0;
}

static int leak(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = lose_item();
    return error;
}

static int take(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = take_item();
    return error;
}

static int give(unsigned int unused)
{
    struct item *item, *next;

    list_for_each_entry_safe(item, next, &items, link) {
        account_freed(&take_item_account, sizeof(*item));
        kmem_cache_free(cache, item);
    }
    INIT_LIST_HEAD(&items);
    return 0;
}

static const struct command commands[] = {
    { "leak", leak },
    { "take", take },
    { "give", give },
    {},
};
static struct account *const accounts[] = { &lose_item_account, &take_item_account, NULL };

static int __init start(void)
{
    cache = kmem_cache_create("leak_item", sizeof(struct item), 0, 0, construct);
    return cache ? driver_start(commands, accounts) : -ENOMEM;
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
}
module_exit(stop);
