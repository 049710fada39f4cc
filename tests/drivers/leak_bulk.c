/*
 * Objects that are allocated in bulk, and packets' buffers out of the cache that each
 * CPU keeps of them.
 *
 * Commands: "take N" takes N objects, 16 at a time, and keeps them; "give 0" frees
 * them one by one, "give_bulk 0" in bulk; "skbs N" takes N buffers as a network
 * driver does in its poll, and keeps them; "skbs_given 0" frees them, into the cache
 * as far as it has room; "skbs_freed N" takes and frees one after the other.
 */
#include "driver.h"

#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/etherdevice.h>

#define AT_ONCE 16
#define MOST_OBJECTS 4800
#define MOST_SKBS 3000
#define OBJECT_BYTES 328

static struct kmem_cache *cache;
static void *objects[MOST_OBJECTS];
static unsigned int object_count;
static struct sk_buff *skbs[MOST_SKBS];
static unsigned int skb_count;
static struct net_device *device;
static struct napi_struct napi;

/* A cache with a constructor is not merged with another of its size, and keeps its name. */
static void construct(void *object)
{
}

ACCOUNT(take_in_bulk);
SITE int take_in_bulk(void **array)
{
    int taken = kmem_cache_alloc_bulk(cache, GFP_KERNEL, AT_ONCE, array);

    for (int index = 0; index < taken; index++)
        account_allocated(&take_in_bulk_account, OBJECT_BYTES);
    return taken;
}

static int take(unsigned int number)
{
    if (!cache)
        cache = kmem_cache_create("leak_bulk", OBJECT_BYTES, 0, 0, construct);
    if (!cache || object_count + number > MOST_OBJECTS || number % AT_ONCE != 0)
        return -EINVAL;
    while (number) {
        if (take_in_bulk(objects + object_count) != AT_ONCE)
            return -ENOMEM;
        object_count += AT_ONCE;
        number -= AT_ONCE;
    }
    return 0;
}

static int give(unsigned int unused)
{
    while (object_count) {
        account_freed(&take_in_bulk_account, OBJECT_BYTES);
        kmem_cache_free(cache, objects[--object_count]);
    }
    return 0;
}

static int give_bulk(unsigned int unused)
{
    if (!object_count)
        return 0;
    for (unsigned int index = 0; index < object_count; index++)
        account_freed(&take_in_bulk_account, OBJECT_BYTES);
    kmem_cache_free_bulk(cache, object_count, objects);
    object_count = 0;
    return 0;
}

/* The head alone: its data is a fragment of a page. */
ACCOUNT(take_skb);
SITE struct sk_buff *take_skb(void)
{
    struct sk_buff *skb = napi_alloc_skb(&napi, 256);

    if (skb)
        account_allocated(&take_skb_account, sizeof(struct sk_buff));
    return skb;
}

/* As in a poll: below soft interrupts. */
static int take_skbs(unsigned int number)
{
    int error = 0;

    if (skb_count + number > MOST_SKBS)
        return -EINVAL;
    local_bh_disable();
    while (!error && number--) {
        struct sk_buff *skb = take_skb();

        if (skb)
            skbs[skb_count++] = skb;
        else
            error = -ENOMEM;
    }
    local_bh_enable();
    return error;
}

static void free_skb(struct sk_buff *skb)
{
    account_freed(&take_skb_account, sizeof(struct sk_buff));
    /* With a budget: as in a poll, where what is freed goes into the cache. */
    napi_consume_skb(skb, 64);
}

static int give_skbs(unsigned int unused)
{
    local_bh_disable();
    while (skb_count)
        free_skb(skbs[--skb_count]);
    local_bh_enable();
    return 0;
}

static int skbs_freed(unsigned int number)
{
    int error = 0;

    local_bh_disable();
    while (!error && number--) {
        struct sk_buff *skb = take_skb();

        if (skb)
            free_skb(skb);
        else
            error = -ENOMEM;
    }
    local_bh_enable();
    return error;
}

static const struct command commands[] = {
    { "take", take },
    { "give", give },
    { "give_bulk", give_bulk },
    { "skbs", take_skbs },
    { "skbs_given", give_skbs },
    { "skbs_freed", skbs_freed },
    {},
};
static struct account *const accounts[] = {
    &take_in_bulk_account,
    &take_skb_account,
    NULL,
};

static int __init start(void)
{
    /* A buffer belongs to a device: never registered, it has nothing else. */
    device = alloc_netdev(0, "leak_bulk%d", NET_NAME_UNKNOWN, ether_setup);
    if (!device)
        return -ENOMEM;
    napi.dev = device;
    return driver_start(commands, accounts);
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
    free_netdev(device);
    if (object_count == 0)
        kmem_cache_destroy(cache);
}
module_exit(stop);
