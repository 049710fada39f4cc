/*
 * Hard case: a static program that never frees. Its C library (musl's) keeps malloc
 * and free in files of their own, and what nobody calls is not linked: there is no
 * free in its symbol table.
 */
#include <stdlib.h>

#define SITE static __attribute__((noinline, noclone, used))

/* Seven blocks of an odd size. */
#define BLOCKS 7
#define BYTES 1579

static void *volatile kept[BLOCKS];

SITE void *site_kept(void) { return malloc(BYTES); }

int main(void)
{
    for (int i = 0; i < BLOCKS; i++)
        if (!(kept[i] = site_kept()))
            return 1;
    return 0;
}
