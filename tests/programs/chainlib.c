/*
 * The shared library of chain.c, and, built with other flags, its plugin: it
 * calls back, and allocates itself.
 */
#include <stdlib.h>
#include <string.h>

void library_calls_back(void (*callback)(int), int times);
void *library_allocates(unsigned long bytes);

#define OWN __attribute__((noinline, noclone))

OWN static void *inner(unsigned long bytes, char *text, int depth)
{
    char local[300];
    void *result;
    memset(local, depth, sizeof local);
    if (depth > 0)
        result = inner(bytes, local, depth - 1);
    else
        result = malloc(bytes);
    text[0] = local[depth];
    __asm__ volatile("" : "+r"(result) : "r"(local) : "memory");
    return result;
}

void *library_allocates(unsigned long bytes)
{
    char text[2] = {0};
    void *result = inner(bytes, text, 4);
    __asm__ volatile("" : "+r"(result) : "r"(text) : "memory");
    return result;
}

void library_calls_back(void (*callback)(int), int times)
{
    for (int i = 0; i < times; i++)
        callback(i);
    __asm__ volatile("" : : : "memory");
}
