/*
 * Makes files, which the kernel allocates inodes and dentries for and which are
 * there after the driver has gone; and leaves blocks and objects of a cache of its
 * own behind, which nobody can free then.
 *
 * Commands: "files N" (/run/leak_files-0 and on), "blocks N", "objects N".
 */
#include "driver.h"

#include <linux/fs.h>

#define BLOCK_BYTES 777

struct object {
    char value[233];
};

static struct kmem_cache *cache;

/* A cache with a constructor is not merged with another of its size, and keeps its name. */
static void construct(void *object)
{
    memset(object, 0, sizeof(struct object));
}

SITE int make_file(unsigned int number)
{
    char path[32];
    struct file *file;

    snprintf(path, sizeof(path), "/run/leak_files-%u", number);
    file = filp_open(path, O_CREAT | O_WRONLY, 0600);
    if (IS_ERR(file))
        return PTR_ERR(file);
    return filp_close(file, NULL);
}

ACCOUNT(leave_block);
SITE int leave_block(void)
{
    if (!kmalloc(BLOCK_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&leave_block_account, BLOCK_BYTES);
    return 0;
}

ACCOUNT(leave_object);
SITE int leave_object(void)
{
    if (!kmem_cache_alloc(cache, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&leave_object_account, sizeof(struct object));
    return 0;
}

static int files(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = make_file(number);
    return error;
}

static int blocks(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = leave_block();
    return error;
}

static int objects(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = leave_object();
    return error;
}

static const struct command commands[] = {
    { "files", files },
    { "blocks", blocks },
    { "objects", objects },
    {},
};
static struct account *const accounts[] = { &leave_block_account, &leave_object_account, NULL };

static int __init start(void)
{
    cache = kmem_cache_create("leak_files_object", sizeof(struct object), 0, 0, construct);
    return cache ? driver_start(commands, accounts) : -ENOMEM;
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
}
module_exit(stop);
