/*
 * Timers and work items that are started and never deleted, so that the data
 * they are part of is lost. (A list of the test's own finds them at rmmod, as
 * they must not run then; their memory stays.)
 *
 * Commands: "timers N", "works N"; "timers_deleted N" and "works_deleted N" do
 * the same and then delete and free them all.
 */
#include "driver.h"

#include <linux/list.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

#define A_DAY (24 * 3600 * HZ)

struct watchdog {
    struct list_head link;
    struct timer_list timer;
    char log[211];
};

struct job {
    struct list_head link;
    struct delayed_work work;
    char request[459];
};

static LIST_HEAD(watchdogs);
static LIST_HEAD(jobs);

static void bark(struct timer_list *timer)
{
}

static void work(struct work_struct *work)
{
}

ACCOUNT(start_watchdog);
SITE int start_watchdog(void)
{
    struct watchdog *watchdog = kmalloc(sizeof(*watchdog), GFP_KERNEL);

    if (!watchdog)
        return -ENOMEM;
    account_allocated(&start_watchdog_account, sizeof(*watchdog));
    timer_setup(&watchdog->timer, bark, 0);
    mod_timer(&watchdog->timer, jiffies + A_DAY);
    list_add(&watchdog->link, &watchdogs);
    return 0;
}

ACCOUNT(start_job);
SITE int start_job(void)
{
    struct job *job = kmalloc(sizeof(*job), GFP_KERNEL);

    if (!job)
        return -ENOMEM;
    account_allocated(&start_job_account, sizeof(*job));
    INIT_DELAYED_WORK(&job->work, work);
    schedule_delayed_work(&job->work, A_DAY);
    list_add(&job->link, &jobs);
    return 0;
}

static void delete_watchdogs(bool and_free)
{
    struct watchdog *watchdog, *next;

    list_for_each_entry_safe(watchdog, next, &watchdogs, link) {
        del_timer_sync(&watchdog->timer);
        list_del(&watchdog->link);
        if (and_free) {
            account_freed(&start_watchdog_account, sizeof(*watchdog));
            kfree(watchdog);
        }
    }
}

static void delete_jobs(bool and_free)
{
    struct job *job, *next;

    list_for_each_entry_safe(job, next, &jobs, link) {
        cancel_delayed_work_sync(&job->work);
        list_del(&job->link);
        if (and_free) {
            account_freed(&start_job_account, sizeof(*job));
            kfree(job);
        }
    }
}

static int timers(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = start_watchdog();
    return error;
}

static int works(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = start_job();
    return error;
}

static int timers_deleted(unsigned int number)
{
    int error = timers(number);

    delete_watchdogs(true);
    return error;
}

static int works_deleted(unsigned int number)
{
    int error = works(number);

    delete_jobs(true);
    return error;
}

static const struct command commands[] = {
    { "timers", timers },
    { "works", works },
    { "timers_deleted", timers_deleted },
    { "works_deleted", works_deleted },
    {},
};
static struct account *const accounts[] = {
    &start_watchdog_account,
    &start_job_account,
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
    delete_watchdogs(false);
    delete_jobs(false);
}
module_exit(stop);
