/*
 * Functions whose names are types, or a name of C++'s library, to a demangler: w (wchar_t),
 * i (int), v (void), f (float), x (long long), St (std). They call one another down to malloc.
 * Stages: ready, (byte: allocate) holding, (byte) end.
 */
#include "account.h"

/* Not static: the names are those of the symbol table. */
#define OUT_OF_LINE __attribute__((noinline, noclone, used))

void *w(void), *i(void), *v(void), *f(void), *x(void), *St(void);

OUT_OF_LINE void *w(void) { return malloc(53); }
OUT_OF_LINE void *i(void) { return w(); }
OUT_OF_LINE void *v(void) { return i(); }
OUT_OF_LINE void *f(void) { return v(); }
OUT_OF_LINE void *x(void) { return f(); }
OUT_OF_LINE void *St(void) { return x(); }

static struct account accounts[] = {{.name = "w"}};

int main(void)
{
    stage("ready", accounts, 1);
    for (int n = 0; n < 5; n++) {
        check(St() != NULL, "malloc");
        account_allocated(&accounts[0], 53);
    }
    stage("holding", accounts, 1);
    return 0;
}
