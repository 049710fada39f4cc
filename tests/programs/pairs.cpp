/*
 * Functions of pairs through which exceptions pass. Stages: ready, (byte: acquire) holding, (byte)
 * end.
 *
 * Each throws, and succeeds at the same call site later: what was thrown is not acquired.
 * `crate_get` is a C function by its name. With the argument `leave` some threads end inside both.
 */
#include "account.h"

#include <pthread.h>
#include <stdexcept>

#define PUBLIC __attribute__((noinline, noclone, used))

static char things[256];
static int used;

enum { SUCCEEDS, THROWS, LEAVES };

PUBLIC void *give(int how)
{
    if (how == THROWS)
        throw std::runtime_error("nothing to give");
    if (how == LEAVES)
        pthread_exit(nullptr);
    return &things[used++];
}

struct Box;
PUBLIC Box *box_get(int how)
{
    void *given = give(how);
    __asm__ volatile("" : "+r"(given));
    return static_cast<Box *>(given);
}

PUBLIC void box_put(Box *box) { *reinterpret_cast<char *>(box) = 1; }

extern "C" PUBLIC void *crate_get(int how)
{
    void *given = give(how);
    __asm__ volatile("" : "+r"(given));
    return given;
}
extern "C" PUBLIC void crate_put(void *crate) { *static_cast<char *>(crate) = 1; }

SITE void *site_box(int how)
{
    void *box = box_get(how);
    __asm__ volatile("" : "+r"(box));
    return box;
}

SITE void *site_crate(int how)
{
    void *crate = crate_get(how);
    __asm__ volatile("" : "+r"(crate));
    return crate;
}

static struct account accounts[2];

static void acquire(struct account *account, void *(*site)(int), void (*put)(void *))
{
    for (int i = 0; i < 40; i++) {
        try {
            /* Thrown, then acquired, by turns and by two. */
            void *thing = site(i % 4 < 2 ? THROWS : SUCCEEDS);
            account_allocated(account, 0);
            if (i % 4 == 3) {
                put(thing);
                account_freed(account, 0);
            }
        } catch (const std::runtime_error &) {
            check(i % 4 < 2, "an exception");
        }
    }
}

static void *leave(void *site)
{
    reinterpret_cast<void *(*)(int)>(site)(LEAVES);
    broken("a thread went on");
    return nullptr;
}

static void leave_within(void *(*site)(int))
{
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        check(pthread_create(&thread, nullptr, leave, reinterpret_cast<void *>(site)) == 0,
              "a thread");
        check(pthread_join(thread, nullptr) == 0, "a thread's end");
    }
}

static void put_box(void *box) { box_put(static_cast<Box *>(box)); }

int main(int argc, char **argv)
{
    accounts[0].name = "site_box";
    accounts[1].name = "site_crate";
    stage("ready", accounts, 2);
    acquire(&accounts[0], site_box, put_box);
    acquire(&accounts[1], site_crate, crate_put);
    if (argc > 1 && strcmp(argv[1], "leave") == 0) {
        leave_within(site_box);
        leave_within(site_crate);
    }
    stage("holding", accounts, 2);
    return 0;
}
