/*
 * Frees everything, by other ways than a kfree for a kmalloc.
 *
 * Commands: "free_bulk N" (N objects of a cache, 1 to 512), "krealloc N" (N blocks,
 * each grown and shrunk, within its cache and beyond), "cache N" (N objects of a
 * cache that is destroyed then), "mempool N" (N elements of a pool of 16).
 */
#include "driver.h"

#include <linux/mempool.h>

#define MOST_OBJECTS 512
#define BULK_BYTES 152
#define CACHE_BYTES 264
#define ELEMENT_BYTES 413
#define POOL_ELEMENTS 16

static void *objects[MOST_OBJECTS];

/* A cache with a constructor is not merged with another of its size, and keeps its name. */
static void construct(void *object)
{
}

ACCOUNT(object_for_bulk);
SITE void *object_for_bulk(struct kmem_cache *cache)
{
    void *object = kmem_cache_alloc(cache, GFP_KERNEL);

    if (object)
        account_allocated(&object_for_bulk_account, BULK_BYTES);
    return object;
}

static int free_bulk(unsigned int number)
{
    struct kmem_cache *cache = kmem_cache_create("clean_bulk", BULK_BYTES, 0, 0, construct);

    if (!cache || number > MOST_OBJECTS)
        return -EINVAL;
    for (unsigned int index = 0; index < number; index++) {
        objects[index] = object_for_bulk(cache);
        if (!objects[index])
            return -ENOMEM;
    }
    for (unsigned int index = 0; index < number; index++)
        account_freed(&object_for_bulk_account, BULK_BYTES);
    kmem_cache_free_bulk(cache, number, objects);
    kmem_cache_destroy(cache);
    return 0;
}

/*
 * krealloc(9) makes a new block only if the old one's cache object is too small.
 * The sizes are such that each step up is one, and each step down is none.
 */
ACCOUNT(resize);
SITE int resize(void)
{
    static const size_t sizes[] = { 30, 100, 1500, 700, 8100, 20000, 9 };
    size_t largest = 0;
    void *block = NULL;

    for (unsigned int step = 0; step < ARRAY_SIZE(sizes); step++) {
        void *resized = krealloc(block, sizes[step], GFP_KERNEL);

        if (!resized) {
            kfree(block);
            return -ENOMEM;
        }
        if (sizes[step] > largest) {
            if (largest)
                account_freed(&resize_account, largest);
            largest = sizes[step];
            account_allocated(&resize_account, largest);
        }
        block = resized;
    }
    account_freed(&resize_account, largest);
    kfree(block);
    return 0;
}

static int run_krealloc(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = resize();
    return error;
}

ACCOUNT(object_for_cache);
SITE void *object_for_cache(struct kmem_cache *cache)
{
    void *object = kmem_cache_alloc(cache, GFP_KERNEL);

    if (object)
        account_allocated(&object_for_cache_account, CACHE_BYTES);
    return object;
}

static int cache_destroyed(unsigned int number)
{
    struct kmem_cache *cache = kmem_cache_create("clean_cache", CACHE_BYTES, 0, 0, construct);

    if (!cache || number > MOST_OBJECTS)
        return -EINVAL;
    for (unsigned int index = 0; index < number; index++) {
        objects[index] = object_for_cache(cache);
        if (!objects[index])
            return -ENOMEM;
    }
    for (unsigned int index = 0; index < number; index++) {
        account_freed(&object_for_cache_account, CACHE_BYTES);
        kmem_cache_free(cache, objects[index]);
    }
    kmem_cache_destroy(cache);
    return 0;
}

/* The pool calls these for elements that it has not. */
ACCOUNT(make_element);
SITE void *make_element(gfp_t flags, void *unused)
{
    void *element = kmalloc(ELEMENT_BYTES, flags);

    if (element)
        account_allocated(&make_element_account, ELEMENT_BYTES);
    return element;
}

static void free_element(void *element, void *unused)
{
    account_freed(&make_element_account, ELEMENT_BYTES);
    kfree(element);
}

static int run_mempool(unsigned int number)
{
    mempool_t *pool = mempool_create(POOL_ELEMENTS, make_element, free_element, NULL);

    if (!pool || number > MOST_OBJECTS)
        return -EINVAL;
    for (unsigned int index = 0; index < number; index++)
        objects[index] = mempool_alloc(pool, GFP_KERNEL);
    for (unsigned int index = 0; index < number; index++)
        mempool_free(objects[index], pool);
    mempool_destroy(pool);
    return 0;
}

static const struct command commands[] = {
    { "free_bulk", free_bulk },
    { "krealloc", run_krealloc },
    { "cache", cache_destroyed },
    { "mempool", run_mempool },
    {},
};
static struct account *const accounts[] = {
    &object_for_bulk_account,
    &resize_account,
    &object_for_cache_account,
    &make_element_account,
    NULL,
};

PLAIN_DRIVER(commands, accounts);
