/*
 * Hard case: a report's cost. 1,000,000 live blocks from 1,000 call sites, and nothing after that.
 *
 * Stages: ready, (byte: allocate) holding, (byte) end without freeing.
 */
#include "account.h"

#define BLOCKS 1000000
#define SITES 1000

/* Each its own size, so that no two of them are folded into one. */
#define ONE(n) \
    SITE void *site_##n(void)                      \
    {                                              \
        void *block = malloc(1##n - 983);          \
        __asm__ volatile("" : "+r"(block));        \
        return block;                              \
    }
#define TEN(n) \
    ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) \
    ONE(n##5) ONE(n##6) ONE(n##7) ONE(n##8) ONE(n##9)
#define HUNDRED(n) \
    TEN(n##0) TEN(n##1) TEN(n##2) TEN(n##3) TEN(n##4) \
    TEN(n##5) TEN(n##6) TEN(n##7) TEN(n##8) TEN(n##9)
#define THOUSAND \
    HUNDRED(0) HUNDRED(1) HUNDRED(2) HUNDRED(3) HUNDRED(4) \
    HUNDRED(5) HUNDRED(6) HUNDRED(7) HUNDRED(8) HUNDRED(9)

THOUSAND

#undef ONE
#define ONE(n) site_##n,
static void *(*const sites[])(void) = {THOUSAND};

_Static_assert(sizeof sites / sizeof sites[0] == SITES, "a thousand call sites");

int main(void)
{
    line_begin("ready");
    line_end();
    wait_for_byte();
    for (unsigned i = 0; i < BLOCKS; i++)
        check(sites[i % SITES]() != NULL, "malloc");
    line_begin("holding");
    line_end();
    wait_for_byte();
    return 0;
}
