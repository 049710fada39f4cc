/*
 * Hard case: a library that leaks, and is gone. It is loaded and unloaded twice,
 * and leaks each time; what it leaked stays.
 *
 * Argument: the library. Stages: ready, (byte: load, leak) opened, (byte: unload,
 * load and leak again) opened, (byte: unload) holding, (byte) end without freeing.
 */
#include "account.h"

#include <dlfcn.h>

#define FIRST 40
#define SECOND 60
#define BYTES 1571

static struct account accounts[] = {{.name = "site_in_library"}};
static void *blocks[FIRST + SECOND];

static void *open_and_leak(const char *path, size_t from, size_t to)
{
    void *library = dlopen(path, RTLD_NOW);
    check(library != NULL, "dlopen");
    void *(*leak)(size_t);
    *(void **)&leak = dlsym(library, "leak_in_library");
    check(leak != NULL, "dlsym");
    for (size_t i = from; i < to; i++) {
        blocks[i] = leak(BYTES);
        check(blocks[i] != NULL, "malloc");
        account_allocated(&accounts[0], BYTES);
    }
    return library;
}

int main(int argc, char **argv)
{
    check(argc == 2, "the library's path");
    stage("ready", accounts, 1);
    void *library = open_and_leak(argv[1], 0, FIRST);
    stage("opened", accounts, 1);
    check(dlclose(library) == 0 && dlopen(argv[1], RTLD_NOLOAD | RTLD_NOW) == NULL, "dlclose");
    library = open_and_leak(argv[1], FIRST, FIRST + SECOND);
    stage("opened", accounts, 1);
    check(dlclose(library) == 0 && dlopen(argv[1], RTLD_NOLOAD | RTLD_NOW) == NULL, "dlclose");
    stage("holding", accounts, 1);
    return 0;
}
