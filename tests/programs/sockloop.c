/* Hard case: a connection within this host for each round: sockets made, connected, a message
   through and closed: network buffers, sockets, files. Prints loops_per_s. */
#include "rate.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int listener = -1;
static struct sockaddr_in address = { .sin_family = AF_INET };

static void listen_once(void)
{
    socklen_t length = sizeof(address);

    if (listener >= 0)
        return;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    check(listener >= 0, "socket");
    check(bind(listener, (struct sockaddr *)&address, length) == 0, "bind");
    check(listen(listener, 16) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
}

SITE void connect_and_close(void)
{
    /* No state is left behind on close: ports would run out. */
    struct linger at_once = { .l_onoff = 1 };
    char message[1000] = "x";
    int one, other;

    listen_once();
    one = socket(AF_INET, SOCK_STREAM, 0);
    check(one >= 0, "socket");
    check(connect(one, (struct sockaddr *)&address, sizeof(address)) == 0, "connect");
    other = accept(listener, NULL, NULL);
    check(other >= 0, "accept");
    check(write(one, message, sizeof(message)) == sizeof(message), "write");
    check(read(other, message, sizeof(message)) == sizeof(message), "read");
    check(setsockopt(one, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)) == 0, "linger");
    close(one);
    close(other);
}

int main(int argc, char **argv) { return run_rate(argc, argv, "loops", connect_and_close); }
