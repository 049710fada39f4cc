/*
 * Leaks from where nobody may sleep: a high-resolution timer (hard interrupt), a
 * tasklet and a timer (both softirq). Each run allocates one block and starts the
 * next run.
 *
 * Commands: "hrtimer N", "tasklet N", "timer N"; all wait until the last run.
 */
#include "driver.h"

#include <linux/completion.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/timer.h>

#define HRTIMER_BYTES 91
#define TASKLET_BYTES 173
#define TIMER_BYTES 605
#define PAUSE ns_to_ktime(50 * NSEC_PER_USEC)

static struct hrtimer hrtimer;
static struct tasklet_struct tasklet;
static struct timer_list timer;

/* Of the command that runs: runs to come, and whether one failed. */
static unsigned int left;
static bool failed;
static DECLARE_COMPLETION(done);

ACCOUNT(leak_in_hrtimer);
SITE void leak_in_hrtimer(void)
{
    if (!in_hardirq() || !kmalloc(HRTIMER_BYTES, GFP_ATOMIC))
        failed = true;
    else
        account_allocated(&leak_in_hrtimer_account, HRTIMER_BYTES);
}

ACCOUNT(leak_in_tasklet);
SITE void leak_in_tasklet(void)
{
    if (!in_serving_softirq() || !kmalloc(TASKLET_BYTES, GFP_ATOMIC))
        failed = true;
    else
        account_allocated(&leak_in_tasklet_account, TASKLET_BYTES);
}

ACCOUNT(leak_in_timer);
SITE void leak_in_timer(void)
{
    if (!in_serving_softirq() || !kmalloc(TIMER_BYTES, GFP_ATOMIC))
        failed = true;
    else
        account_allocated(&leak_in_timer_account, TIMER_BYTES);
}

/* Whether there is another run; after the last one the command goes on. */
static bool goes_on(void)
{
    if (--left && !failed)
        return true;
    complete(&done);
    return false;
}

static enum hrtimer_restart on_hrtimer(struct hrtimer *unused)
{
    leak_in_hrtimer();
    if (!goes_on())
        return HRTIMER_NORESTART;
    hrtimer_forward_now(&hrtimer, PAUSE);
    return HRTIMER_RESTART;
}

static void on_tasklet(struct tasklet_struct *unused)
{
    leak_in_tasklet();
    if (goes_on())
        tasklet_schedule(&tasklet);
}

static void on_timer(struct timer_list *unused)
{
    leak_in_timer();
    if (goes_on())
        mod_timer(&timer, jiffies + 1);
}

static int wait_for_runs(void)
{
    wait_for_completion(&done);
    return failed ? -EIO : 0;
}

static int run_hrtimer(unsigned int number)
{
    left = number;
    hrtimer_start(&hrtimer, PAUSE, HRTIMER_MODE_REL_HARD);
    return wait_for_runs();
}

static int run_tasklet(unsigned int number)
{
    left = number;
    tasklet_schedule(&tasklet);
    return wait_for_runs();
}

static int run_timer(unsigned int number)
{
    left = number;
    mod_timer(&timer, jiffies + 1);
    return wait_for_runs();
}

static const struct command commands[] = {
    { "hrtimer", run_hrtimer },
    { "tasklet", run_tasklet },
    { "timer", run_timer },
    {},
};
static struct account *const accounts[] = {
    &leak_in_hrtimer_account,
    &leak_in_tasklet_account,
    &leak_in_timer_account,
    NULL,
};

static int __init start(void)
{
    hrtimer_init(&hrtimer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
    hrtimer.function = on_hrtimer;
    tasklet_setup(&tasklet, on_tasklet);
    timer_setup(&timer, on_timer, 0);
    return driver_start(commands, accounts);
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
    hrtimer_cancel(&hrtimer);
    tasklet_kill(&tasklet);
    del_timer_sync(&timer);
}
module_exit(stop);
