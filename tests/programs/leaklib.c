/* A library that leaks what it allocates: see plugged.c. */
#include <stdlib.h>

static __attribute__((noinline, noclone, used)) void *site_in_library(size_t bytes)
{
    return malloc(bytes);
}

void *leak_in_library(size_t bytes)
{
    void *block = site_in_library(bytes);
    __asm__ volatile("" : "+r"(block));
    return block;
}
