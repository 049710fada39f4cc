/*
 * Hard case: a library that allocates in its constructor, before the entry point of
 * the program that it belongs to. Of three blocks one is freed there.
 */
#include <stdlib.h>

#define SITE static __attribute__((noinline, noclone, used))

#define BLOCKS 3
#define BYTES 1613

static void *volatile kept[BLOCKS];

SITE void *site_constructor(void) { return malloc(BYTES); }

static __attribute__((constructor)) void constructor(void)
{
    for (int i = 0; i < BLOCKS; i++)
        kept[i] = site_constructor();
    free(kept[0]);
}

int ctorlib_number(void) { return 6; }

/* With LD_AUDIT it is an audit library. */
unsigned int la_version(unsigned int version) { return version; }
