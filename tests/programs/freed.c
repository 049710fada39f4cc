/*
 * One call site whose blocks are freed at two places: of each 100, 90 in close_session, 9 in
 * drop_session, and one never.
 * Stages: ready, (byte: allocate and free) holding, (byte) end.
 */
#include "account.h"

#define SESSIONS 20000

static struct account accounts[] = {{.name = "open_session"}};

SITE void *open_session(void)
{
    void *session = malloc(100);
    check(session != NULL, "malloc");
    account_allocated(&accounts[0], 100);
    return session;
}

SITE void close_session(void *session)
{
    free(session);
    account_freed(&accounts[0], 100);
}

SITE void drop_session(void *session)
{
    free(session);
    account_freed(&accounts[0], 100);
}

int main(void)
{
    stage("ready", accounts, 1);
    for (int n = 0; n < SESSIONS; n++) {
        void *session = open_session();
        if (n % 100 < 90)
            close_session(session);
        else if (n % 100 < 99)
            drop_session(session);
    }
    stage("holding", accounts, 1);
    return 0;
}
