/*
 * Leaks beyond the slab allocators: vmalloc, percpu, and pages of orders 0 to 3.
 *
 * Commands: "vmalloc N", "percpu N", "pages N" (N of each order); "split_all N"
 * splits blocks of order 3 and frees each page, "split_half N" every other one;
 * "freed N" allocates and frees one after the other, of each kind.
 */
#include "driver.h"

#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/vmalloc.h>

/* No whole number of pages: what was asked for is what counts. */
#define VMALLOC_BYTES (3 * PAGE_SIZE + 100)
#define PERCPU_BYTES 40
/* Each CPU that may ever come has its own. */
#define PERCPU_BYTES_IN_ALL (PERCPU_BYTES * num_possible_cpus())
#define SPLIT_ORDER 3

ACCOUNT(leak_vmalloc);
SITE void *leak_vmalloc(void)
{
    void *block = vmalloc(VMALLOC_BYTES);

    if (block)
        account_allocated(&leak_vmalloc_account, VMALLOC_BYTES);
    return block;
}

ACCOUNT(leak_percpu);
SITE void __percpu *leak_percpu(void)
{
    void __percpu *block = __alloc_percpu(PERCPU_BYTES, 8);

    if (block)
        account_allocated(&leak_percpu_account, PERCPU_BYTES_IN_ALL);
    return block;
}

#define LEAK_ORDER(order)                                                               \
    ACCOUNT(leak_order_##order);                                                        \
    SITE struct page *leak_order_##order(void)                                          \
    {                                                                                   \
        struct page *page = alloc_pages(GFP_KERNEL, order);                             \
                                                                                        \
        if (page)                                                                       \
            account_allocated(&leak_order_##order##_account, PAGE_SIZE << order);       \
        return page;                                                                    \
    }
LEAK_ORDER(0)
LEAK_ORDER(1)
LEAK_ORDER(2)
LEAK_ORDER(3)

/* In pages: a block that was split is freed page by page. */
ACCOUNT(split_block);
SITE int split_block(unsigned int step)
{
    struct page *page = alloc_pages(GFP_KERNEL, SPLIT_ORDER);

    if (!page)
        return -ENOMEM;
    split_page(page, SPLIT_ORDER);
    for (unsigned int index = 0; index < 1 << SPLIT_ORDER; index++) {
        account_allocated(&split_block_account, PAGE_SIZE);
        if (index % step == 0) {
            account_freed(&split_block_account, PAGE_SIZE);
            __free_page(page + index);
        }
    }
    return 0;
}

static int vmallocs(unsigned int number)
{
    while (number--)
        if (!leak_vmalloc())
            return -ENOMEM;
    return 0;
}

static int percpus(unsigned int number)
{
    while (number--)
        if (!leak_percpu())
            return -ENOMEM;
    return 0;
}

static int pages(unsigned int number)
{
    while (number--)
        if (!leak_order_0() || !leak_order_1() || !leak_order_2() || !leak_order_3())
            return -ENOMEM;
    return 0;
}

static int split_all(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = split_block(1);
    return error;
}

static int split_half(unsigned int number)
{
    int error = 0;

    while (!error && number--)
        error = split_block(2);
    return error;
}

static int freed(unsigned int number)
{
    while (number--) {
        void *block = leak_vmalloc();
        void __percpu *percpu = leak_percpu();
        struct page *page = leak_order_2();

        if (!block || !percpu || !page)
            return -ENOMEM;
        account_freed(&leak_vmalloc_account, VMALLOC_BYTES);
        vfree(block);
        account_freed(&leak_percpu_account, PERCPU_BYTES_IN_ALL);
        free_percpu(percpu);
        account_freed(&leak_order_2_account, PAGE_SIZE << 2);
        __free_pages(page, 2);
    }
    return 0;
}

static const struct command commands[] = {
    { "vmalloc", vmallocs },
    { "percpu", percpus },
    { "pages", pages },
    { "split_all", split_all },
    { "split_half", split_half },
    { "freed", freed },
    {},
};
static struct account *const accounts[] = {
    &leak_vmalloc_account,
    &leak_percpu_account,
    &leak_order_0_account,
    &leak_order_1_account,
    &leak_order_2_account,
    &leak_order_3_account,
    &split_block_account,
    NULL,
};

PLAIN_DRIVER(commands, accounts);
