/*
 * The stages of the programs whose stacks gdb and leaktrace must agree on.
 *
 * Every block is leaked and has a size of its own of 20,000 bytes or more, by
 * which the test knows it.
 *
 * Stages: ready, (byte: round) traced, (byte: the same round) checked, (byte) end.
 */
#ifndef LEAKTRACE_TEST_UNWIND_H
#define LEAKTRACE_TEST_UNWIND_H

#include "account.h"

#include <dlfcn.h>

/* An allocation is a call that comes back, whatever the optimizer thinks of it. */
#define LEAK(bytes)                                                                                \
    do {                                                                                           \
        void *leaked_ = malloc(bytes);                                                             \
        check(leaked_ != NULL, "malloc");                                                          \
        __asm__ volatile("" : "+r"(leaked_) : : "memory");                                         \
    } while (0)

/* The account is empty: what is told is where malloc begins, for the breakpoint. */
static inline void unwind_stage(const char *name)
{
    void *address = dlsym(RTLD_DEFAULT, "malloc");
    check(address != NULL, "dlsym");
    line_begin(name);
    line_add(",\"malloc\":\"0x%llx\"", (unsigned long long)(uintptr_t)address);
    line_end();
    wait_for_byte();
}

/* Both rounds are the same call, so that all their return addresses are equal. */
static inline void unwind_rounds(void (*run)(void))
{
    const char *stages[] = {"traced", "checked"};
    unwind_stage("ready");
    for (int i = 0; i < 2; i++) {
        run();
        unwind_stage(stages[i]);
    }
}

#endif
