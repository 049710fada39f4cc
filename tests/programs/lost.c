/*
 * Programs of a few blocks each, by the name in the first argument: what a leak checker says of
 * each block is known. Valgrind and LeakSanitizer are the judges; nothing is printed.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node {
    struct node *next, *other;
    char pad[48];
};

void *volatile global;
static void *volatile hidden[8];
static __thread void *volatile local;
static pthread_key_t key;

__attribute__((noipa)) static void *block(size_t size)
{
    void *made = malloc(size);
    if (made == NULL)
        exit(99);
    memset(made, 0, size);
    return made;
}

/* Overwrites what earlier calls have left on the stack. */
__attribute__((noipa)) static void scrub(void)
{
    volatile char room[8192];
    memset((char *)room, 0, sizeof room);
}

__attribute__((noipa)) static struct node *list(int length)
{
    struct node *first = NULL;
    while (length-- > 0) {
        struct node *made = block(sizeof *made);
        made->next = first;
        first = made;
    }
    return first;
}

__attribute__((noipa)) static void cycle(int length)
{
    struct node *first = list(length), *last = first;
    while (last->next != NULL)
        last = last->next;
    last->next = first;
}

__attribute__((noipa)) static void drop_ten(void)
{
    for (int i = 0; i < 10; i++)
        block(100);
}

__attribute__((noipa)) static void drop_tree(void)
{
    struct node *root = block(sizeof *root);
    root->next = list(3);
    root->other = list(4);
}

__attribute__((noipa)) static void drop_shared(void)
{
    struct node *shared = list(2);
    struct node *a = block(sizeof *a), *b = block(sizeof *b);
    a->next = b->next = shared;
}

__attribute__((noipa)) static void drop_realloc(void)
{
    char *grown = block(10);
    grown = realloc(grown, 5000);
    grown = realloc(grown, 300);
    memset(grown, 1, 300);
}

__attribute__((noipa)) static void overwrite_global(void)
{
    for (int i = 0; i < 5; i++)
        global = block(64);
}

__attribute__((noipa)) static void drop_strings(void)
{
    char **words = block(4 * sizeof *words);
    for (int i = 0; i < 4; i++)
        words[i] = strdup("a word");
    hidden[0] = words;
    hidden[0] = NULL;
}

static void *leave_local(void *argument)
{
    local = block(80);
    pthread_setspecific(key, block(90));
    return argument;
}

static void in_thread(void *(*function)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, NULL) != 0 || pthread_join(thread, NULL) != 0)
        exit(99);
}

int main(int count, char **arguments)
{
    const char *name = count > 1 ? arguments[1] : "";
    if (strcmp(name, "nothing") == 0)
        free(block(10));
    else if (strcmp(name, "ten") == 0)
        drop_ten();
    else if (strcmp(name, "list") == 0)
        list(10);
    else if (strcmp(name, "cycle") == 0)
        cycle(3);
    else if (strcmp(name, "self") == 0)
        cycle(1);
    else if (strcmp(name, "tree") == 0)
        drop_tree();
    else if (strcmp(name, "shared") == 0)
        drop_shared();
    else if (strcmp(name, "realloc") == 0)
        drop_realloc();
    else if (strcmp(name, "overwritten") == 0)
        overwrite_global();
    else if (strcmp(name, "strings") == 0)
        drop_strings();
    else if (strcmp(name, "global") == 0)
        global = list(6);
    else if (strcmp(name, "interior") == 0)
        global = (char *)block(200) + 24;
    else if (strcmp(name, "interior-chain") == 0) {
        struct node *inner = list(3);
        global = &inner->pad;
    } else if (strcmp(name, "local") == 0)
        local = list(4);
    else if (strcmp(name, "specific") == 0) {
        pthread_key_create(&key, NULL);
        pthread_setspecific(key, list(2));
    } else if (strcmp(name, "thread") == 0) {
        pthread_key_create(&key, NULL);
        in_thread(leave_local);
    } else if (strcmp(name, "frame") == 0) {
        void *volatile held = list(3);
        scrub();
        exit(held == NULL);
    } else if (strcmp(name, "big") == 0) {
        hidden[1] = block(1 << 20);
        block(1 << 20);
    } else if (strcmp(name, "aligned") == 0) {
        void *made;
        if (posix_memalign(&made, 4096, 5000) != 0)
            exit(99);
        global = made;
        posix_memalign(&made, 64, 100);
    } else if (strcmp(name, "zero") == 0) {
        global = malloc(0);
        hidden[2] = malloc(0);
        hidden[2] = NULL;
    } else if (strcmp(name, "freed") == 0) {
        /* A pointer in freed memory holds nothing. */
        struct node *holder = block(sizeof *holder);
        holder->other = block(70);
        free(holder);
    } else if (strcmp(name, "print") == 0)
        printf("printed\n");
    else
        exit(98);
    scrub();
    return 0;
}
