/*
 * Strings, lists and tables of GLib, all given back. The library's headers need not
 * be installed: what is called is declared here.
 */
#include "corpus.h"

typedef unsigned int (*hash_function)(const void *);
typedef int (*equal_function)(const void *, const void *);
typedef void (*destroy_function)(void *);
extern unsigned int g_str_hash(const void *);
extern int g_str_equal(const void *, const void *);
extern void g_free(void *);
extern void *g_hash_table_new_full(hash_function, equal_function, destroy_function, destroy_function);
extern int g_hash_table_insert(void *, void *, void *);
extern int g_hash_table_remove(void *, const void *);
extern void g_hash_table_destroy(void *);
extern char *g_strdup_printf(const char *, ...);
extern void *g_list_prepend(void *, void *);
extern void g_list_free_full(void *, destroy_function);
extern char **g_strsplit(const char *, const char *, int);
extern void g_strfreev(char **);
extern char *g_strjoinv(const char *, char **);
extern void *g_string_new(const char *);
extern void g_string_append_printf(void *, const char *, ...);
extern char *g_string_free(void *, int);

static void *table;

SITE void table_round(void)
{
    uint64_t key = random_below(400);
    char text[32];
    snprintf(text, sizeof text, "key %llu", (unsigned long long)key);
    if (random_below(2))
        g_hash_table_insert(table, g_strdup_printf("%s", text), g_strdup_printf("value %s", text));
    else
        g_hash_table_remove(table, text);
}

SITE void string_round(void)
{
    char **words = g_strsplit("some words of a line", " ", 0);
    char *line = g_strjoinv("-", words);
    void *string = g_string_new(line), *list = NULL;
    for (int i = 0; i < 10; i++) {
        g_string_append_printf(string, " %d", i);
        list = g_list_prepend(list, g_strdup_printf("%d", i));
    }
    g_list_free_full(list, g_free);
    g_string_free(string, 1);
    g_free(line);
    g_strfreev(words);
}

static void glib_turn(void)
{
    if (table == NULL)
        table = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    for (unsigned i = times(60); i > 0; i--)
        table_round();
    for (unsigned i = times(10); i > 0; i--)
        string_round();
    /* A table is thrown away now and then. */
    if (turn % (25 * TURNS) == 25 * TURNS - 1) {
        g_hash_table_destroy(table);
        table = NULL;
    }
}

static const struct corpus_case cases[] = {{"glib", NULL, glib_turn}};

int main(int argc, char **argv) { return run_corpus(argc, argv, cases, 1); }
