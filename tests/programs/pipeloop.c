/* Hard case: nothing but pipe() and close(): about a dozen kernel allocations each. Prints
   loops_per_s. */
#include "rate.h"

SITE void open_and_close(void)
{
    int ends[2];
    check(pipe(ends) == 0, "pipe");
    close(ends[0]);
    close(ends[1]);
}

int main(int argc, char **argv) { return run_rate(argc, argv, "loops", open_and_close); }
