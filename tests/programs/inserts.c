/* Hard case: SQLite in memory, rows inserted and, each thousand, deleted. Prints rows_per_s. */
#include "rate.h"

/* Of libsqlite3, whose header is in a package of its own. */
struct sqlite3;
int sqlite3_open(const char *name, struct sqlite3 **database);
int sqlite3_exec(struct sqlite3 *database, const char *sql, void *row, void *context, char **error);

static struct sqlite3 *database;
static unsigned row;

static void query(const char *sql)
{
    check(sqlite3_exec(database, sql, NULL, NULL, NULL) == 0, sql);
}

SITE void insert(void)
{
    char sql[160];
    if (row % 1000 == 0)
        query("delete from rows");
    snprintf(sql, sizeof sql,
             "insert into rows values(%u, 'a name that is not the shortest', 'value %u')", row, row);
    row++;
    query(sql);
}

int main(int argc, char **argv)
{
    check(sqlite3_open(":memory:", &database) == 0, "sqlite3_open");
    query("create table rows(id integer primary key, name text, value text)");
    query("create index by_value on rows(value)");
    return run_rate(argc, argv, "rows", insert);
}
