/* Hard case: nothing but files created and removed. Prints loops_per_s. */
#include "rate.h"

#include <fcntl.h>

SITE void create_and_unlink(void)
{
    static char name[64];
    int file;

    if (!name[0])
        snprintf(name, sizeof(name), "/tmp/leaktrace-fileloop.%d", (int)getpid());
    file = open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
    check(file >= 0, "open");
    close(file);
    check(unlink(name) == 0, "unlink");
}

int main(int argc, char **argv) { return run_rate(argc, argv, "loops", create_and_unlink); }
