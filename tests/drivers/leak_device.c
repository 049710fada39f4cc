/*
 * /dev/leak_device, whose open allocates a session that its release forgets, and
 * /dev/clean_device, whose release frees it.
 *
 * Commands: "add N", N entries below /proc/leak_device, each with data of the
 * driver's. Their removal at rmmod frees the entries and not the data, to which
 * nothing but the entry pointed. "drop 0" does that before rmmod.
 */
#include "driver.h"

#include <linux/miscdevice.h>
#include <linux/proc_fs.h>

/* Odd sizes, so that nobody takes one for another's. */
#define SESSION_BYTES 333
#define DATA_BYTES 77

ACCOUNT(open_session);
SITE int open_session(struct inode *inode, struct file *file)
{
    file->private_data = kmalloc(SESSION_BYTES, GFP_KERNEL);
    if (!file->private_data)
        return -ENOMEM;
    account_allocated(&open_session_account, SESSION_BYTES);
    return 0;
}

ACCOUNT(open_clean_session);
SITE int open_clean_session(struct inode *inode, struct file *file)
{
    file->private_data = kmalloc(SESSION_BYTES, GFP_KERNEL);
    if (!file->private_data)
        return -ENOMEM;
    account_allocated(&open_clean_session_account, SESSION_BYTES);
    return 0;
}

static int release_nothing(struct inode *inode, struct file *file)
{
    return 0;
}

static int release_session(struct inode *inode, struct file *file)
{
    account_freed(&open_clean_session_account, SESSION_BYTES);
    kfree(file->private_data);
    return 0;
}

static const struct file_operations leak_fops = {
    .owner = THIS_MODULE,
    .open = open_session,
    .release = release_nothing,
};
static const struct file_operations clean_fops = {
    .owner = THIS_MODULE,
    .open = open_clean_session,
    .release = release_session,
};
static struct miscdevice leak_misc = {
    .minor = MISC_DYNAMIC_MINOR,
    .name = "leak_device",
    .fops = &leak_fops,
};
static struct miscdevice clean_misc = {
    .minor = MISC_DYNAMIC_MINOR,
    .name = "clean_device",
    .fops = &clean_fops,
};

static struct proc_dir_entry *proc_folder;
static const struct proc_ops entry_ops = {};

ACCOUNT(entry_data);
SITE void *entry_data(void)
{
    void *data = kmalloc(DATA_BYTES, GFP_KERNEL);

    if (data)
        account_allocated(&entry_data_account, DATA_BYTES);
    return data;
}

/* The kernel allocates the entry; its size is not known here, and accounted as 0. */
ACCOUNT(make_entry);
SITE int make_entry(unsigned int index, void *data)
{
    char name[16];

    snprintf(name, sizeof(name), "%u", index);
    if (!proc_create_data(name, 0400, proc_folder, &entry_ops, data))
        return -ENOMEM;
    account_allocated(&make_entry_account, 0);
    return 0;
}

static int add(unsigned int number)
{
    for (unsigned int index = 0; index < number; index++) {
        void *data = entry_data();
        int error = data ? make_entry(index, data) : -ENOMEM;

        if (error)
            return error;
    }
    return 0;
}

static int drop(unsigned int unused)
{
    proc_remove(proc_folder);
    proc_folder = NULL;
    return 0;
}

static const struct command commands[] = { { "add", add }, { "drop", drop }, {} };
static struct account *const accounts[] = {
    &open_session_account,
    &open_clean_session_account,
    &entry_data_account,
    &make_entry_account,
    NULL,
};

static int __init start(void)
{
    int error = misc_register(&leak_misc);

    if (error)
        return error;
    error = misc_register(&clean_misc);
    if (error) {
        misc_deregister(&leak_misc);
        return error;
    }
    proc_folder = proc_mkdir("leak_device", NULL);
    return driver_start(commands, accounts);
}
module_init(start);

static void __exit stop(void)
{
    driver_stop();
    proc_remove(proc_folder);
    misc_deregister(&clean_misc);
    misc_deregister(&leak_misc);
}
module_exit(stop);
