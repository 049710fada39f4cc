/*
 * Functions that get and put, by their names and no allocator's: handles with a
 * size, which may not be had (NULL, ERR_PTR), references to one object, and slots
 * through a pointer. Nothing is allocated.
 *
 * Commands: "get N", "put N", "fail N", "hold N" (references), "drop N", "open N",
 * "close N". "get" and "open" fill up to 512 places. "interrupt N" holds N, which
 * an interrupt drops meanwhile. "wait 0" is in a function that acquires until
 * "go 0"; "entered 0" returns once it is.
 */
#include "driver.h"

#include <linux/completion.h>
#include <linux/err.h>
#include <linux/hrtimer.h>
#include <linux/sched.h>

#define PLACES 512
#define HANDLE_BYTES 24

struct handle {
    bool is_taken;
};

/* handle_get(size=2):handle_put */
static struct handle handles[PLACES];

static noinline __noclone struct handle *handle_get(int which, size_t bytes)
{
    barrier_data(&bytes);
    if (which == -1)
        return NULL;
    if (which < 0)
        return ERR_PTR(-ENODEV);
    handles[which].is_taken = true;
    return &handles[which];
}

static noinline __noclone void handle_put(struct handle *handle)
{
    handle->is_taken = false;
}

/* object_hold(key=1,if=true):object_drop */
struct object {
    unsigned int references;
};
static struct object objects[3];

static noinline __noclone bool object_hold(struct object *object, bool is_dead)
{
    if (is_dead)
        return false;
    object->references++;
    return true;
}

static noinline __noclone void object_drop(struct object *object)
{
    object->references--;
}

/* slot_open(out=2):slot_close */
static struct handle slots[PLACES];

static noinline __noclone int slot_open(int which, struct handle **slot)
{
    *slot = &slots[which % PLACES];
    if (which % 4 == 3)
        return -EBUSY;
    (*slot)->is_taken = true;
    return 0;
}

/* Not the code of handle_put: the compiler would make them one. */
static noinline __noclone void slot_close(struct handle *slot)
{
    WRITE_ONCE(slot->is_taken, false);
    barrier_data(slot);
}

/* handle_await:handle_put */
static DECLARE_COMPLETION(entered);
static DECLARE_COMPLETION(go);

static noinline __noclone struct handle *handle_await(void)
{
    complete(&entered);
    wait_for_completion(&go);
    return &handles[0];
}

ACCOUNT(take_handle);
SITE struct handle *take_handle(int which)
{
    struct handle *handle = handle_get(which, HANDLE_BYTES);

    if (!IS_ERR_OR_NULL(handle))
        account_allocated(&take_handle_account, HANDLE_BYTES);
    return handle;
}

ACCOUNT(take_reference);
SITE void take_reference(struct object *object, bool is_dead)
{
    if (object_hold(object, is_dead))
        account_allocated(&take_reference_account, 0);
}

ACCOUNT(take_slot);
SITE void take_slot(int which)
{
    struct handle *slot;

    if (slot_open(which, &slot) == 0)
        account_allocated(&take_slot_account, 0);
}

static int get(unsigned int number)
{
    for (int which = 0; which < PLACES && number; which++) {
        if (handles[which].is_taken)
            continue;
        take_handle(which);
        number--;
    }
    return number ? -ENOSPC : 0;
}

static int put(unsigned int number)
{
    for (int which = 0; which < PLACES && number; which++) {
        if (!handles[which].is_taken)
            continue;
        handle_put(&handles[which]);
        account_freed(&take_handle_account, HANDLE_BYTES);
        number--;
    }
    return number ? -ENOENT : 0;
}

static int fail(unsigned int number)
{
    while (number--) {
        take_handle(-1);
        take_handle(-2);
        take_reference(&objects[0], true);
    }
    return 0;
}

static int hold(unsigned int number)
{
    while (number--)
        take_reference(&objects[number % ARRAY_SIZE(objects)], false);
    return 0;
}

static int drop(unsigned int number)
{
    while (number--) {
        object_drop(&objects[number % ARRAY_SIZE(objects)]);
        account_freed(&take_reference_account, 0);
    }
    return 0;
}

/* References of "interrupt" that are held. */
static atomic_t held;
static struct hrtimer hrtimer;

static enum hrtimer_restart on_hrtimer(struct hrtimer *unused)
{
    if (atomic_dec_if_positive(&held) >= 0) {
        object_drop(&objects[0]);
        account_freed(&take_reference_account, 0);
    }
    hrtimer_forward_now(&hrtimer, ns_to_ktime(50 * NSEC_PER_USEC));
    return HRTIMER_RESTART;
}

static int interrupt(unsigned int number)
{
    migrate_disable();
    hrtimer_init(&hrtimer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
    hrtimer.function = on_hrtimer;
    hrtimer_start(&hrtimer, 0, HRTIMER_MODE_REL_PINNED_HARD);
    while (number--) {
        take_reference(&objects[0], false);
        atomic_inc(&held);
    }
    hrtimer_cancel(&hrtimer);
    migrate_enable();
    return 0;
}

static int await(unsigned int unused)
{
    handle_await();
    return 0;
}

static int await_entered(unsigned int unused)
{
    wait_for_completion(&entered);
    return 0;
}

static int let_go(unsigned int unused)
{
    complete(&go);
    return 0;
}

static int open_slots(unsigned int number)
{
    for (int which = 0; which < PLACES && which < number; which++)
        take_slot(which);
    return 0;
}

static int close_slots(unsigned int number)
{
    for (int which = 0; which < PLACES && number; which++) {
        if (!slots[which].is_taken)
            continue;
        slot_close(&slots[which]);
        account_freed(&take_slot_account, 0);
        number--;
    }
    return number ? -ENOENT : 0;
}

static const struct command commands[] = {
    { "get", get },
    { "put", put },
    { "fail", fail },
    { "hold", hold },
    { "drop", drop },
    { "open", open_slots },
    { "close", close_slots },
    { "interrupt", interrupt },
    { "wait", await },
    { "entered", await_entered },
    { "go", let_go },
    {},
};
static struct account *const accounts[] = { &take_handle_account, &take_reference_account,
                                            &take_slot_account, NULL };

PLAIN_DRIVER(commands, accounts);
