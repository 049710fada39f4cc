/*
 * Allocates in its init, in code that goes with it and in code that stays, and
 * frees nothing; with fail=1 its init fails then.
 *
 * Parameters: blocks=N of each, fail=0|1. No commands.
 */
#include "driver.h"

#define BLOCK_BYTES 321

static unsigned int blocks;
module_param(blocks, uint, 0400);
static bool fail;
module_param(fail, bool, 0400);

ACCOUNT(leave_in_init);
static noinline int __init leave_in_init(void)
{
    if (!kmalloc(BLOCK_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&leave_in_init_account, BLOCK_BYTES);
    return 0;
}

ACCOUNT(leave_in_text);
SITE int leave_in_text(void)
{
    if (!kmalloc(BLOCK_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&leave_in_text_account, BLOCK_BYTES);
    return 0;
}

static const struct command commands[] = { {} };
static struct account *const accounts[] = { &leave_in_init_account, &leave_in_text_account, NULL };

static int __init start(void)
{
    int error = 0;

    for (unsigned int number = 0; !error && number < blocks; number++)
        error = leave_in_init() ?: leave_in_text();
    if (!error && fail)
        error = -ENODEV;
    return error ?: driver_start(commands, accounts);
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
}
module_exit(stop);
