/*
 * Handles of libraries: streams of the C library, connections of OpenSSL, databases of SQLite.
 *
 * Stages: ready, (byte: acquire) holding, (byte) end.
 */
#include "account.h"

#include <openssl/ssl.h>
#include <sqlite3.h>

SITE FILE *site_stream(const char *path) { return fopen(path, "r"); }
SITE FILE *site_stream_of(int fd) { return fdopen(fd, "r"); }
SITE SSL *site_connection(SSL_CTX *context) { return SSL_new(context); }
SITE int site_database(const char *path, sqlite3 **database) { return sqlite3_open(path, database); }

enum { STREAM, STREAM_OF, CONNECTION, DATABASE };
static struct account accounts[] = {
    {.name = "site_stream"},
    {.name = "site_stream_of"},
    {.name = "site_connection"},
    {.name = "site_database"},
};
#define ACCOUNTS (sizeof accounts / sizeof *accounts)

int main(void)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    check(context != NULL, "SSL_CTX_new");
    stage("ready", accounts, ACCOUNTS);
    for (int i = 0; i < 11; i++) {
        FILE *stream = site_stream("/dev/null");
        check(stream != NULL, "fopen");
        account_allocated(&accounts[STREAM], 0);
        check(site_stream("/no/such/file") == NULL, "a file that is not there");
        if (i < 8) {
            check(fclose(stream) == 0, "fclose");
            account_freed(&accounts[STREAM], 0);
        }
        if (i % 2 == 0) {
            FILE *other = site_stream_of(dup(STDIN_FILENO));
            check(other != NULL, "fdopen");
            account_allocated(&accounts[STREAM_OF], 0);
            if (i < 6) {
                check(fclose(other) == 0, "fclose");
                account_freed(&accounts[STREAM_OF], 0);
            }
        }
    }
    for (int i = 0; i < 27; i++) {
        SSL *connection = site_connection(context);
        check(connection != NULL, "SSL_new");
        account_allocated(&accounts[CONNECTION], 0);
        if (i % 9 < 7) {
            SSL_free(connection);
            account_freed(&accounts[CONNECTION], 0);
        }
    }
    for (int i = 0; i < 6; i++) {
        sqlite3 *database;
        /* A database that cannot be opened has to be closed as well. */
        const char *path = i == 2 ? "/no/such/folder/file" : ":memory:";
        int error = site_database(path, &database);
        check((error != 0) == (i == 2) && database != NULL, "sqlite3_open");
        account_allocated(&accounts[DATABASE], 0);
        if (i < 4) {
            check((i % 2 ? sqlite3_close(database) : sqlite3_close_v2(database)) == 0, "close");
            account_freed(&accounts[DATABASE], 0);
        }
    }
    stage("holding", accounts, ACCOUNTS);
    return 0;
}
