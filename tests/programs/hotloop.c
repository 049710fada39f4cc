/* Hard case: nothing but malloc and free, as fast as they go. Prints pairs_per_s. */
#include "rate.h"

SITE void pair(void)
{
    void *block = malloc(61);
    /* The compiler must believe that the block is used. */
    __asm__ volatile("" : "+r"(block) : : "memory");
    free(block);
}

int main(int argc, char **argv) { return run_rate(argc, argv, "pairs", pair); }
