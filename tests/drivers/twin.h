/*
 * Two drivers of the same code, but for its names: the second one comes to lie
 * where the first one lay. LEAVE is the function that leaves blocks behind, TWIN its name.
 *
 * Commands: "leave N".
 */
#include "driver.h"

#define BLOCK_BYTES 555

static struct account leave_account = { .name = TWIN };
SITE int LEAVE(void)
{
    if (!kmalloc(BLOCK_BYTES, GFP_KERNEL))
        return -ENOMEM;
    account_allocated(&leave_account, BLOCK_BYTES);
    return 0;
}

static int leave(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = LEAVE();
    return error;
}

static const struct command commands[] = { { "leave", leave }, {} };
static struct account *const accounts[] = { &leave_account, NULL };

PLAIN_DRIVER(commands, accounts);
