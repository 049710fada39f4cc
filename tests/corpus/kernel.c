/*
 * A process that forgets to close what it opens.
 */
#include "corpus.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

/* Four hundred sockets, in 54 s. */
static void sockets_turn(void)
{
    static int opened;
    if (opened < 400 && is_due(7.5)) {
        check(socket(AF_INET, SOCK_DGRAM, 0) >= 0, "socket");
        opened++;
    }
}

static void eventfd_turn(void)
{
    if (is_due(1))
        check(eventfd(0, 0) >= 0, "eventfd");
}

/* Both ends of a pipe, twice a second. */
static void pipes_turn(void)
{
    int ends[2];
    if (is_due(2))
        check(pipe(ends) == 0, "pipe");
}

static const struct corpus_case cases[] = {
    {"eventfd", NULL, eventfd_turn},
    {"pipes", NULL, pipes_turn},
    {"sockets", NULL, sockets_turn},
};

int main(int argc, char **argv)
{
    return run_corpus(argc, argv, cases, sizeof cases / sizeof *cases);
}
