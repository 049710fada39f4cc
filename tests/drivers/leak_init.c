/*
 * Leaks while it starts: in its init, whose text is freed once it has run, and in
 * a function that its init calls. Two functions have names as helpers of the
 * kernel's own have.
 *
 * Commands: "more N", N more of each of these two.
 */
#include "driver.h"

#define INIT_COUNT 40
#define INIT_BYTES 777
#define NEW_COUNT 60
#define NEW_BYTES 1501
#define MAPPED_BYTES 3001

ACCOUNT(leak_in_init);
static noinline int __init leak_in_init(void)
{
    if (!kmalloc(INIT_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&leak_in_init_account, INIT_BYTES);
    return 0;
}

/* include/linux/xarray.h has a family of functions that begin so. */
ACCOUNT(xa_new);
SITE int xa_new(void)
{
    if (!kmalloc(NEW_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&xa_new_account, NEW_BYTES);
    return 0;
}

/* As vmap(), include/linux/vmalloc.h. */
ACCOUNT(vmapped);
SITE int vmapped(void)
{
    if (!kmalloc(MAPPED_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&vmapped_account, MAPPED_BYTES);
    return 0;
}

static int more(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = xa_new() ?: vmapped();
    return error;
}

static const struct command commands[] = {
    { "more", more },
    {},
};
static struct account *const accounts[] = {
    &leak_in_init_account, &xa_new_account, &vmapped_account, NULL,
};

static int __init start(void)
{
    int error = 0;

    for (int i = 0; !error && i < INIT_COUNT; i++)
        error = leak_in_init();
    if (!error)
        error = more(NEW_COUNT);
    return error ? error : driver_start(commands, accounts);
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
}
module_exit(stop);
