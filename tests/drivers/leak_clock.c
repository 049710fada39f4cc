/*
 * A driver that takes its clock in probe and again in resume, but gives it back
 * only in remove: each suspend and resume leaks one handle. The provider makes a
 * handle and a name for each consumer, as clk_get does.
 *
 * Commands: "probe 0", "cycle N" (N times suspend and the forgetful resume),
 * "cycle_fixed N" (with a suspend that gives the clock back), "remove 0".
 */
#include "driver.h"

#include <linux/string.h>

/* The provider. */
struct clock {
    unsigned long rate_hz;
    char *consumer;
    char state[83];
};

static const char consumer[] = "leak-clock.0";

ACCOUNT(clock_get);
SITE struct clock *clock_get(const char *name)
{
    struct clock *clock = kzalloc(sizeof(*clock), GFP_KERNEL);

    if (!clock)
        return NULL;
    clock->consumer = kstrdup(name, GFP_KERNEL);
    if (!clock->consumer) {
        kfree(clock);
        return NULL;
    }
    account_allocated(&clock_get_account, sizeof(*clock));
    account_allocated(&clock_get_account, strlen(name) + 1);
    return clock;
}

static noinline void clock_put(struct clock *clock)
{
    account_freed(&clock_get_account, strlen(clock->consumer) + 1);
    account_freed(&clock_get_account, sizeof(*clock));
    kfree(clock->consumer);
    kfree(clock);
}

/* The consumer. */
static struct clock *device_clock;

static int take_clock(void)
{
    device_clock = clock_get(consumer);
    return device_clock ? 0 : -ENOMEM;
}

static int probe(unsigned int unused)
{
    return take_clock();
}

/* The clock is stopped, but the handle is kept. */
static void device_suspend(void)
{
    device_clock->rate_hz = 0;
}

/* Forgets that the device still has a handle. */
static noinline int device_resume(void)
{
    return take_clock();
}

static int cycle(unsigned int number)
{
    int error = device_clock ? 0 : -ENODEV;

    while (!error && number--) {
        device_suspend();
        error = device_resume();
    }
    return error;
}

static int cycle_fixed(unsigned int number)
{
    int error = device_clock ? 0 : -ENODEV;

    while (!error && number--) {
        clock_put(device_clock);
        error = device_resume();
    }
    return error;
}

static int device_remove(unsigned int unused)
{
    if (!device_clock)
        return -ENODEV;
    clock_put(device_clock);
    device_clock = NULL;
    return 0;
}

static const struct command commands[] = {
    { "probe", probe },
    { "cycle", cycle },
    { "cycle_fixed", cycle_fixed },
    { "remove", device_remove },
    {},
};
static struct account *const accounts[] = { &clock_get_account, NULL };

PLAIN_DRIVER(commands, accounts);
