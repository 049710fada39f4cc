/*
 * Hard case: 2,000 requests of io_uring that wait, each for a pipe that nobody writes to. The
 * kernel allocates its requests in bulk.
 *
 * Stages: ready, (byte: submit) holding, (byte: close) closed, (byte) end.
 */
#define _GNU_SOURCE
#include "account.h"

#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define REQUESTS 2000
#define ENTRIES 64

struct ring {
    int descriptor;
    uint32_t entries, *tail, *order;
    struct io_uring_sqe *requests;
};

static void *map_ring(int descriptor, size_t bytes, off_t what)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor,
                        what);
    check(memory != MAP_FAILED, "mmap");
    return memory;
}

static struct ring set_up(void)
{
    struct io_uring_params params;
    struct ring ring;

    memset(&params, 0, sizeof(params));
    ring.descriptor = (int)syscall(SYS_io_uring_setup, ENTRIES, &params);
    check(ring.descriptor >= 0, "io_uring_setup");
    ring.entries = params.sq_entries;
    char *queue = map_ring(ring.descriptor, params.sq_off.array + ring.entries * sizeof(uint32_t),
                           IORING_OFF_SQ_RING);
    ring.tail = (uint32_t *)(queue + params.sq_off.tail);
    ring.order = (uint32_t *)(queue + params.sq_off.array);
    ring.requests =
        map_ring(ring.descriptor, ring.entries * sizeof(*ring.requests), IORING_OFF_SQES);
    return ring;
}

SITE void submit(struct ring *ring, int pipe_end)
{
    for (uint32_t left = REQUESTS; left > 0;) {
        uint32_t count = left < ring->entries ? left : ring->entries;

        for (uint32_t index = 0; index < count; index++) {
            struct io_uring_sqe *request = &ring->requests[index];

            memset(request, 0, sizeof(*request));
            request->opcode = IORING_OP_POLL_ADD;
            request->fd = pipe_end;
            request->poll32_events = POLLIN;
            ring->order[(*ring->tail + index) % ring->entries] = index;
        }
        __atomic_store_n(ring->tail, *ring->tail + count, __ATOMIC_RELEASE);
        long taken = syscall(SYS_io_uring_enter, ring->descriptor, count, 0, 0, NULL, 0);
        check(taken == (long)count, "io_uring_enter");
        left -= count;
    }
}

int main(void)
{
    int ends[2];

    check(pipe(ends) == 0, "pipe");
    struct ring ring = set_up();
    line_begin("ready");
    line_end();
    wait_for_byte();
    submit(&ring, ends[0]);
    line_begin("holding");
    line_add(",\"requests\":%d", REQUESTS);
    line_end();
    wait_for_byte();
    check(close(ring.descriptor) == 0, "close");
    line_begin("closed");
    line_end();
    wait_for_byte();
    return 0;
}
