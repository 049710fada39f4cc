/*
 * What every test program shares: its own account of what it allocated, printed
 * as one JSON line at each stage, and the handshake through stdin and stdout.
 *
 * Nothing here allocates: a leaker whose bookkeeping used malloc would trace
 * itself. Buffers are static, output goes through write(2).
 */
#ifndef LEAKTRACE_TEST_ACCOUNT_H
#define LEAKTRACE_TEST_ACCOUNT_H

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A call site must stay a function of its own, and a call in it must be a call. */
#define SITE static __attribute__((noinline, noclone, used))

/* Exit code of a program whose own checks failed: a defect of the test itself. */
#define EXIT_BROKEN 99

/* What one function allocated, and what became of it. */
struct account {
    const char *name;
    uint64_t allocated_count, allocated_bytes;
    uint64_t freed_count, freed_bytes;
};

static inline void account_allocated(struct account *account, uint64_t bytes)
{
    account->allocated_count++;
    account->allocated_bytes += bytes;
}

static inline void account_freed(struct account *account, uint64_t bytes)
{
    account->freed_count++;
    account->freed_bytes += bytes;
}

static char line_buffer[65536];
static size_t line_length;

static inline void broken(const char *what)
{
    char text[256];
    int length = snprintf(text, sizeof text, "broken test program: %s (errno %d)\n", what, errno);
    if (write(STDERR_FILENO, text, (size_t)length) < 0)
        _exit(EXIT_BROKEN - 1);
    _exit(EXIT_BROKEN);
}

static inline void check(int condition, const char *what)
{
    if (!condition)
        broken(what);
}

__attribute__((format(printf, 1, 2))) static inline void line_add(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line_buffer + line_length, sizeof line_buffer - line_length, format,
                           arguments);
    va_end(arguments);
    check(length >= 0 && line_length + (size_t)length < sizeof line_buffer, "line too long");
    line_length += (size_t)length;
}

/* {"stage":"...","pid":...  -- the caller may add fields before line_end(). */
static inline void line_begin(const char *stage)
{
    line_length = 0;
    line_add("{\"stage\":\"%s\",\"pid\":%d", stage, (int)getpid());
}

static inline void line_end(void)
{
    line_add("}\n");
    for (size_t done = 0; done < line_length;) {
        ssize_t written = write(STDOUT_FILENO, line_buffer + done, line_length - done);
        if (written < 0 && errno == EINTR)
            continue;
        check(written > 0, "stdout");
        done += (size_t)written;
    }
}

static inline void line_add_accounts(const struct account *accounts, size_t count)
{
    line_add(",\"sites\":[");
    for (size_t i = 0; i < count; i++) {
        const struct account *a = &accounts[i];
        line_add("%s{\"name\":\"%s\",\"outstanding_count\":%llu,\"outstanding_bytes\":%llu,"
                 "\"allocated_count\":%llu,\"allocated_bytes\":%llu,"
                 "\"freed_count\":%llu,\"freed_bytes\":%llu}",
                 i ? "," : "", a->name,
                 (unsigned long long)(a->allocated_count - a->freed_count),
                 (unsigned long long)(a->allocated_bytes - a->freed_bytes),
                 (unsigned long long)a->allocated_count, (unsigned long long)a->allocated_bytes,
                 (unsigned long long)a->freed_count, (unsigned long long)a->freed_bytes);
    }
    line_add("]");
}

/* Waits for the test's next byte; when the test is gone, so is the program. */
static inline void wait_for_byte(void)
{
    char byte;
    ssize_t got;
    do
        got = read(STDIN_FILENO, &byte, 1);
    while (got < 0 && errno == EINTR);
    check(got == 1, "the test closed stdin");
}

/* One stage: the account as one line, then the wait for the test's byte. */
static inline void stage(const char *name, const struct account *accounts, size_t count)
{
    line_begin(name);
    line_add_accounts(accounts, count);
    line_end();
    wait_for_byte();
}

#endif
