/*
 * Kernel memory that is no slab object: a percpu counter for each mount, and a
 * page by vmalloc for each socket filter.
 *
 * Stages: ready, (byte: make them) holding, (byte: undo it) closed, (byte) end.
 */
#include "account.h"

#include <linux/filter.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>

#define MOUNTS 40
#define SOCKETS 50

int main(int argc, char **argv)
{
    int sockets[SOCKETS];
    struct sock_filter accept_all = BPF_STMT(BPF_RET | BPF_K, 0xffff);
    struct sock_fprog filter = {.len = 1, .filter = &accept_all};

    check(argc == 2, "usage: kmaps FOLDER");
    /* Mounts of its own, which end with it whatever happens. */
    check(unshare(CLONE_NEWNS) == 0, "unshare");
    check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "make mounts private");
    line_begin("ready");
    line_end();
    wait_for_byte();
    for (int i = 0; i < MOUNTS; i++)
        check(mount("none", argv[1], "tmpfs", 0, NULL) == 0, "mount");
    for (int i = 0; i < SOCKETS; i++) {
        sockets[i] = socket(AF_UNIX, SOCK_DGRAM, 0);
        check(sockets[i] >= 0, "socket");
        check(setsockopt(sockets[i], SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) == 0,
              "SO_ATTACH_FILTER");
    }
    line_begin("holding");
    line_add(",\"mounts\":%d,\"sockets\":%d", MOUNTS, SOCKETS);
    line_end();
    wait_for_byte();
    for (int i = 0; i < MOUNTS; i++)
        check(umount(argv[1]) == 0, "umount");
    for (int i = 0; i < SOCKETS; i++)
        close(sockets[i]);
    line_begin("closed");
    line_end();
    wait_for_byte();
    return 0;
}
