/*
 * What every test driver shares: its own account of what each of its functions
 * allocated and freed, and a folder in debugfs through which a test leads it.
 *
 * /sys/kernel/debug/NAME/command: write "WORD NUMBER"; it has been done when the
 * write returns. /sys/kernel/debug/NAME/account: the account, as one JSON line.
 *
 * A driver allocates nothing before its first command (but leak_init), so that a
 * tracer that is started after insmod sees everything in the account.
 */
#ifndef LEAKTRACE_TEST_DRIVER_H
#define LEAKTRACE_TEST_DRIVER_H

#include <linux/atomic.h>
#include <linux/debugfs.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

/* A call site must stay a function of its own, with its own name in the stack. */
#define SITE static noinline __noclone

/* What one function allocated, and what became of it; interrupts write it too. */
struct account {
    const char *name;
    atomic64_t allocated_count, allocated_bytes;
    atomic64_t freed_count, freed_bytes;
};

/* The account of a function, called FUNCTION_account. */
#define ACCOUNT(function) static struct account function##_account = { .name = #function }

static inline void account_allocated(struct account *account, size_t bytes)
{
    atomic64_inc(&account->allocated_count);
    atomic64_add(bytes, &account->allocated_bytes);
}

static inline void account_freed(struct account *account, size_t bytes)
{
    atomic64_inc(&account->freed_count);
    atomic64_add(bytes, &account->freed_bytes);
}

/* Something that a test can have done; 0, or an error of the driver itself. */
struct command {
    const char *name;
    int (*run)(unsigned int number);
};

/* Both end with an empty element. */
static const struct command *driver_commands;
static struct account *const *driver_accounts;
static struct dentry *driver_folder;

static ssize_t command_write(struct file *file, const char __user *text, size_t length,
                             loff_t *position)
{
    char line[64], name[33];
    unsigned int number;

    if (length >= sizeof(line) || copy_from_user(line, text, length))
        return -EINVAL;
    line[length] = '\0';
    if (sscanf(line, "%32s %u", name, &number) != 2)
        return -EINVAL;
    for (const struct command *command = driver_commands; command->name; command++) {
        if (strcmp(command->name, name) == 0) {
            int error = command->run(number);
            return error ? error : (ssize_t)length;
        }
    }
    return -ENOENT;
}

static const struct file_operations command_fops = {
    .owner = THIS_MODULE,
    .open = simple_open,
    .write = command_write,
};

static int account_show(struct seq_file *file, void *unused)
{
    seq_puts(file, "{\"sites\":[");
    for (struct account *const *next = driver_accounts; *next; next++) {
        struct account *a = *next;
        s64 allocated_count = atomic64_read(&a->allocated_count);
        s64 allocated_bytes = atomic64_read(&a->allocated_bytes);
        s64 freed_count = atomic64_read(&a->freed_count);
        s64 freed_bytes = atomic64_read(&a->freed_bytes);

        seq_printf(file,
                   "%s{\"name\":\"%s\",\"outstanding_count\":%lld,\"outstanding_bytes\":%lld,"
                   "\"allocated_count\":%lld,\"allocated_bytes\":%lld,"
                   "\"freed_count\":%lld,\"freed_bytes\":%lld}",
                   next == driver_accounts ? "" : ",", a->name, allocated_count - freed_count,
                   allocated_bytes - freed_bytes, allocated_count, allocated_bytes, freed_count,
                   freed_bytes);
    }
    seq_puts(file, "]}\n");
    return 0;
}
DEFINE_SHOW_ATTRIBUTE(account);

static int driver_start(const struct command *commands, struct account *const *accounts)
{
    driver_commands = commands;
    driver_accounts = accounts;
    driver_folder = debugfs_create_dir(KBUILD_MODNAME, NULL);
    debugfs_create_file("command", 0200, driver_folder, NULL, &command_fops);
    debugfs_create_file("account", 0400, driver_folder, NULL, &account_fops);
    return 0;
}

static void driver_stop(void)
{
    debugfs_remove(driver_folder);
}

/* The init and exit of a driver that has nothing else to set up. */
#define PLAIN_DRIVER(commands, accounts)           \
    static int __init start(void)                  \
    {                                              \
        return driver_start(commands, accounts);   \
    }                                              \
    module_init(start);                            \
    static void __exit stop(void)                  \
    {                                              \
        driver_stop();                             \
    }                                              \
    module_exit(stop)

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("a test driver of leaktrace");

#endif
